"""LLaVA-Instruct, POPE, MMBench, a folder of one's own, and samples: all into the one table, or a clear error."""

import base64
import json

import numpy as np
import PIL.ImageColor
import pytest
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.official_files import PNG, World, talk
from tests.evals.official import HEADER, M, cells, lines, png, tabs
from tests.small import refused
from vlm_lite.data.commands import sample, write_folder
from vlm_lite.data.formats import FEATURES, image_tensor
from vlm_lite.data.readers import read_folder, read_llava, read_mmbench, read_pope
from vlm_lite.files import UserError

# Where a value is put ("-": taken away), and what the error says beside the file's name.
BAD = r"""
captions  []  the top level
captions  null  the top level
captions.images  -  `images` .*'info', 'annotations'
captions.annotations  -  `annotations`
captions.annotations  {}  `annotations` is \{\}
captions.annotations  []  no captions
captions.annotations.1  "x"  annotations\[1\] is 'x'.*`image_id`
captions.annotations.1.caption  -  `annotations\[1\].caption`
captions.annotations.1.caption  5  `annotations\[1\].caption` is 5
captions.annotations.1.caption  "\ud800"  `annotations\[1\].caption`
captions.annotations.1.image_id  "42"  `images` .* '42'
captions.annotations.1.image_id  8  `images` .* 8
captions.annotations.1.image_id  true  `annotations\[1\].image_id` is True
captions.annotations.1.image_id  9223372036854775808  `annotations\[1\].image_id`
captions.images.0.file_name  -  `images\[0\].file_name`
captions.images.0.file_name  "gone.png"  1 of 2 images .*gone.png
captions.images.1.id  42  images\[1\].id is 42
descriptions.42  -  `42`
descriptions.42  5  `42` is 5
descriptions  ["x"]  top level
questions.questions  -  `questions`
questions.questions  []  no questions
questions.data_subtype  -  `data_subtype`
questions.data_subtype  "train2014"  'train2014' .*'val2014' .*annotations.json
questions.questions.1.question  3  `questions\[1\].question` is 3
questions.questions.1.question_id  70  questions\[1\].question_id is 70
questions.questions.1.question_id  5  question_id 5
questions.questions.1.image_id  43  annotations\[2\].image_id is 42.*image 43
annotations.annotations  -  `annotations`
annotations.annotations.2.question_type  -  `annotations\[2\].question_type`
annotations.annotations.2.answers  ["a"]  `annotations\[2\].answers` has 1
annotations.annotations.2.answers.0  "a"  annotations\[2\].answers\[0\] is 'a'
annotations.annotations.2.answers.4.answer  2  answers\[4\].answer` is 2
annotations.annotations.2.answers.4.answer  -  answers\[4\].answer`
annotations.annotations.2.answers.4.answer  "\udfff"  answers\[4\].answer`
llava  []  is empty
llava.0  {"data": 3}  `\[0\].image`.*'data'
llava.0.image  -  `\[0\].image`
llava.1.image  "cat.jpg"  1 of 2 images .*cat.jpg
llava.1.image  "000000000009.jpg"  1 of 2 images .*9.jpg or COCO_train2014
llava.0.image  "../../000000000042.jpg"  leaves the folder
llava.0.image  "/etc/000000000042.jpg"  leaves the folder
llava.0.conversations.3  -  `\[0\].conversations` has 3
llava.0.conversations.0.from  "gpt"  `\[0\].conversations\[0\].from` is 'gpt'
llava.2.conversations.1.value  " <image> "  `\[2\].conversations\[1\].value`
llava.2.conversations  []  `\[2\].conversations` has 0
pope.1.label  "maybe"  line 2.label is 'maybe'
pope.1.text  3  `line 2.text` is 3
pope.1.image  "../000000000043.jpg"  leaves the folder
pope.1.question_id  -1  `line 2.question_id` is -1
pope.1.question_id  1  line 2.question_id is 1
own.2.file_name  "../b.png"  leaves the folder
own.2.file_name  "/etc/passwd"  leaves the folder
own.2.file_name  "link.png"  leaves the folder
own.2.file_name  "c.png"  1 of 3 images .*c.png
own.2.file_name  null  `line 3.file_name` is None
own.2.captoins  ["a"]  line 3: .*'captoins'.*file_name .*image_id, captions
own.2.image  "b.png"  line 3: .*'image'
own.2.captions  "a caption"  `line 3.captions` is 'a caption'
own.2.captions  ["a", 3]  `line 3.captions\[1\]` is 3
own.2.captions  ["a", " "]  `line 3.captions` .*\['a', ' '\]
own.2.question  " "  `line 3.question` is empty
own.2.answer  ""  `line 3.answer` is empty
own.2.conversation  [{"role": "user"}]  `line 3.conversation\[0\].content`
own.2.image_id  " "  `line 3.image_id` is ' '
own.2.image_id  9  'b.png' has image_id 9, and 1
own.1.image_id  1  one image_id
"""


@pytest.mark.parametrize("row", BAD.strip().splitlines())
def test_a_bad_file_is_named_with_its_line_and_field(world, row):
    path, value, message = row.split("  ")
    holder, (name, *keys) = vars(world), path.split(".")
    *parents, last = [name, *(int(key) if key in "0 1 2 3 4" else key for key in keys)]
    for key in parents:
        holder = holder[key]
    if value == "-":
        del holder[last]
    else:
        holder[last] = json.loads(value)
    (world.folder / "own" / "link.png").symlink_to(world.images / PNG)
    with refused(message) as caught:
        world.read(name)
    assert ("metadata.jsonl" if name == "own" else f"{name}.json") in str(caught.value)


KEYS = "id image_id image file_name caption conversations from value text label answers answer"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner)
    ),
    max_leaves=6,
)


def places(node):
    for key in node if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from places(node[key])


@pytest.mark.parametrize("name", "captions questions annotations llava pope own".split())
@settings(max_examples=15)
@given(value=JSON, data=st.data())
def test_no_value_anywhere_makes_anything_but_a_user_error(tmp_path_factory, name, value, data):
    world = World(tmp_path_factory.mktemp("world"))
    whole = {name: getattr(world, name)}
    holder, key = data.draw(st.sampled_from([*places(whole)]))
    holder[key] = value
    setattr(world, name, whole[name])
    try:
        world.read(name)
    except UserError:
        pass


def test_conversations_take_turns_and_lose_the_image_mark_and_train2014s_images_will_do(world):
    table = world.read("llava")
    assert table.features == FEATURES
    assert table["image_id"][:] == [42, 7, 42]
    roles, texts = ([turn[key] for turn in table[0]["conversation"]] for key in ("role", "content"))
    assert roles == ["user", "assistant"] * 2 and texts == ["what?", "é", "and?", "b"]
    assert table[1]["conversation"][0]["content"] == "why?"
    assert image_tensor(table)[1] == [42, 7]
    assert len(world.read("llava", image_ids={7})) == 1


def test_pope_is_read_with_its_label_as_ten_answers(world):
    table = world.read("pope")
    assert table.features == FEATURES
    row = {key: value for key, value in table[1].items() if value and key != "image"}
    ids = {"image_id": 42, "question_id": 2, "question": "Is there a cat?", "answer": "no"}
    kinds = {"question_type": "existence", "answer_type": "yes/no"}
    assert row == {**ids, **kinds, "answers": ["no"] * 10}


def write(folder, text):
    (folder / "file").write_text(text)
    return folder / "file"


def test_mmbench_writes_hint_and_options_into_the_question_and_decodes_the_picture(tmp_path):
    image = base64.b64encode(png("red")).decode()
    first = cells(3, "B", image, question="what?", hint="look well")
    rows = [HEADER, first, cells(M + 3, "A", "3", question="what?", hint="", A="dog", B="cat")]
    table = read_mmbench(write(tmp_path, tabs(rows)))
    assert table.features == FEATURES
    assert table["question"][:] == ["look well\nwhat?\nA. cat\nB. dog", "what?\nA. dog\nB. cat"]
    assert table["answer"][:] == ["B", "A"] and table["image_id"][:] == [3, 3]
    assert table["question_id"][:] == [3, M + 3]
    assert table[1]["image"].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("ids", [None, (("b", "b1"), ("003a", "a1"), ("b", "b2"))])
def test_a_folder_of_ones_own_is_the_same_table_and_its_ids_may_be_text(world, ids):
    for row, (image, question) in zip(world.own, ids or (), strict=bool(ids)):
        row |= {"image_id": image, "question_id": question}
    table, own = world.read("own"), world.own
    assert table.features == FEATURES
    assert table["image_id"][:] == [1, 2, 1]
    assert table["question_id"][:] == ([1, 2, 3] if ids else [None, 2, None])
    assert table[0]["captions"] == own[0]["captions"]
    assert table[1]["answers"] == ["2"] * 10
    assert table[2]["conversation"] == own[2]["conversation"]
    assert table[1]["image"].size == (9, 5)


def test_the_folder_is_also_one_that_datasets_reads_by_itself(world):
    world.own = [{**row, "captions": []} for row in world.own[:2]]
    table = load_dataset("imagefolder", data_dir=str(world.write("own").parent), split="train")
    assert table[1]["question"] == "how many?"


def rows(table):
    return [{**row, "image": np.asarray(row["image"]).tolist()} for row in table]


@pytest.mark.parametrize("name", ["own", "llava"])
def test_what_is_written_is_read_back_equal(world, name):
    table = world.read(name)
    write_folder(table, world.folder / "copy")
    assert rows(read_folder(world.folder / "copy")) == rows(table)


def test_a_sample_keeps_all_that_belongs_to_a_picture_and_a_seed_keeps_the_sample(world):
    table = world.read("own")
    chosen = {tuple(sample(table, 1, seed)["image_id"][:]) for seed in range(9)}
    assert chosen == {(1, 1), (2,)}
    assert rows(sample(table, 1, 3)) == rows(sample(table, 1, 3))
    assert rows(sample(table, 2)) == rows(table)
    for count in (0, 3):
        with refused(f"{count} .* 2"):
            sample(table, count)


def test_a_row_without_a_picture_and_a_picture_that_is_none_are_not_written(world):
    file, out = write(world.folder, tabs([HEADER, cells(3, "B")])), world.folder / "out"
    with refused("image_id 3 "):
        write_folder(read_mmbench(file), out)
    table = world.read("own")
    (world.folder / "own" / "b.png").write_bytes(b"<html>no picture</html>")
    with refused("b.png"):
        write_folder(table, out)
    assert not out.exists() and not list(world.folder.glob(".out*"))


COLOURS = {"cats/001.png": "red", "dogs/001.png": "lime", "birds/001.png": "blue", "x.png": "white"}


def solid(folder, colours):
    for name, colour in colours.items():
        (folder / "many" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "many" / name).write_bytes(png(colour))


def read_names(kind, folder, names, **options):
    """The table of a file of `kind` that speaks of the images `names` in turn."""
    if kind == "llava":
        rows = [talk(name, "what?", "that") for name in names]
        return read_llava(write(folder, json.dumps(rows)), folder / "many", **options)
    asked = {"text": "Is there a cat?", "label": "yes"}
    rows = [{"question_id": k, "image": name, **asked} for k, name in enumerate(names)]
    return read_pope(write(folder, lines(rows)), folder / "many")


@pytest.mark.parametrize("kind", ["llava", "pope"])
@settings(max_examples=15)
@given(names=st.lists(st.sampled_from(list(COLOURS)), min_size=1, max_size=6))
def test_every_row_has_the_image_of_its_own_path(tmp_path, kind, names):
    solid(tmp_path, COLOURS)
    table = read_names(kind, tmp_path, names)
    shown = [row["image"].getpixel((0, 0)) for row in table]
    assert shown == [PIL.ImageColor.getrgb(COLOURS[name]) for name in names]
    ids = dict(zip(names, table["image_id"][:], strict=True))
    assert table["image_id"][:] == [ids[name] for name in names]
    assert len(set(ids.values())) == len(ids)


TRAIN = "COCO_train2014_000000000007.jpg"
ASKED = """gqa/000000000007.jpg val2017/000000000007.jpg 7.jpg photo_000000000007.jpg 000000000007.png
    COCO_val2014_000000000007.jpg cats/001.png"""


@pytest.mark.parametrize("kind", ["llava", "pope"])
@pytest.mark.parametrize("asked", ASKED.split())
def test_no_other_data_set_s_file_stands_in_for_a_missing_one(tmp_path, kind, asked):
    solid(tmp_path, dict.fromkeys((TRAIN, "dogs/001.png", "001.png"), "red"))
    with refused("1 of 1 images"):
        read_names(kind, tmp_path, [asked])


def test_coco_s_numbers_stay_the_ids_and_where_two_files_have_one_a_choice_by_id_is_refused(
    tmp_path,
):
    names = ["a/000000000042.png", "b/000000000042.png", "a/000000000043.png"]
    solid(tmp_path, dict.fromkeys(names, "red"))
    assert read_names("llava", tmp_path, names[1:])["image_id"][:] == [42, 43]
    assert read_names("llava", tmp_path, names)["image_id"][:] == [1, 2, 3]
    assert read_names("llava", tmp_path, names, image_ids={43})["image_id"][:] == [43]
    with refused("a/0+42.png.*b/0+42.png.*image 42"):
        read_names("llava", tmp_path, names, image_ids={42})
