"""LLaVA-Instruct, POPE, MMBench, a folder of one's own, and samples: all into the one table, or a clear error."""

import base64
import copy
import json

import numpy as np
import PIL.ImageColor
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.evals.official import HEADER, M, cells, lines, png, tabs
from vlm_lite.data.commands import sample, write_folder
from vlm_lite.data.formats import FEATURES, image_tensor
from vlm_lite.data.readers import read_folder, read_llava, read_mmbench, read_pope
from vlm_lite.files import UserError


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "000000000042.jpg").write_bytes(png("red"))
    (folder / "COCO_train2014_000000000007.jpg").write_bytes(png("blue"))
    return folder


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def talk(name, *texts):
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {"id": "7", "image": name, "conversations": turns}


LLAVA = [
    talk("000000000042.jpg", "<image>\nwhat?", "é", "and?", "b"),
    talk("coco/train2017/000000000007.jpg", "why?\n<image>", "c"),
    talk("000000000042.jpg", "<image>\nmore?", "d"),
]


def test_conversations_take_turns_and_lose_the_image_mark_and_train2014s_images_will_do(
    tmp_path, images
):
    file = write(tmp_path / "llava.json", LLAVA)
    table = read_llava(file, images)
    assert table.features == FEATURES
    assert table["image_id"][:] == [42, 7, 42]
    roles, texts = ([turn[key] for turn in table[0]["conversation"]] for key in ("role", "content"))
    assert roles == ["user", "assistant"] * 2 and texts == ["what?", "é", "and?", "b"]
    assert table[1]["conversation"][0]["content"] == "why?"
    assert image_tensor(table)[1] == [42, 7]
    assert len(read_llava(file, images, image_ids={7})) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[0].pop("image"), r"`\[0\].image`"),
        (lambda d: d[1].update(image="cat.jpg"), "1 of 2 images .*cat.jpg"),
        (lambda d: d[0].update(image="../../000000000042.jpg"), "leaves the folder"),
        (lambda d: d[0].update(image="/etc/000000000042.jpg"), "leaves the folder"),
        (
            lambda d: d[1].update(image="000000000009.jpg"),
            "1 of 2 images .*9.jpg or COCO_train2014",
        ),
        (lambda d: d[0]["conversations"].pop(), r"`\[0\].conversations` has 3"),
        (lambda d: d[0]["conversations"].reverse(), r"`\[0\].conversations\[0\].from` is 'gpt'"),
        (
            lambda d: d[2]["conversations"][1].update(value=" <image> "),
            r"`\[2\].conversations\[1\].value`",
        ),
        (lambda d: d[2].update(conversations=[]), r"`\[2\].conversations` has 0"),
        (lambda d: d.clear(), "is empty"),
        (lambda d: d.__setitem__(slice(None), [{"data": 3}]), r"`\[0\].image`.*'data'"),
    ],
)
def test_an_error_in_llavas_file_names_the_entry_and_the_field(tmp_path, images, change, message):
    data = copy.deepcopy(LLAVA)
    change(data)
    with pytest.raises(UserError, match=f"llava.json.*{message}"):
        read_llava(write(tmp_path / "llava.json", data), images)


POPE = [
    {"question_id": k, "image": "000000000042.jpg", "text": "Is there a cat?", "label": label}
    for k, label in ((1, "yes"), (2, "no"))
]


def test_pope_is_read_with_its_label_as_ten_answers(tmp_path, images):
    table = read_pope(write(tmp_path / "pope.json", lines(POPE)), images)
    assert table.features == FEATURES
    row = {key: value for key, value in table[1].items() if value and key != "image"}
    ids = {"image_id": 42, "question_id": 2, "question": "Is there a cat?", "answer": "no"}
    assert row == {
        **ids, "question_type": "existence", "answer_type": "yes/no", "answers": ["no"] * 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "line 2.label is 'maybe'"),
        ({"text": 3}, "`line 2.text` is 3"),
        ({"image": "../000000000043.jpg"}, "leaves the folder"),
        ({"question_id": -1}, "`line 2.question_id` is -1"),
        ({"question_id": 1}, "line 2.question_id is 1"),
    ],
)
def test_an_error_in_popes_file_names_the_line(tmp_path, images, change, message):
    with pytest.raises(UserError, match=f"pope.json.*{message}"):
        read_pope(write(tmp_path / "pope.json", lines([POPE[0], POPE[1] | change])), images)


def test_mmbench_writes_hint_and_options_into_the_question_and_decodes_the_picture(tmp_path):
    image = base64.b64encode(png("red")).decode()
    first = cells(3, "B", image, question="what?", hint="look well")
    rows = [HEADER, first, cells(M + 3, "A", "3", question="what?", hint="", A="dog", B="cat")]
    table = read_mmbench(write(tmp_path / "m.tsv", tabs(rows)))
    assert table.features == FEATURES
    assert table["question"][:] == ["look well\nwhat?\nA. cat\nB. dog", "what?\nA. dog\nB. cat"]
    assert table["answer"][:] == ["B", "A"] and table["image_id"][:] == [3, 3]
    assert table["question_id"][:] == [3, M + 3]
    assert table[1]["image"].getpixel((0, 0)) == (255, 0, 0)


OWN = [
    {"file_name": "b.png", "captions": ["<script>alert(1)</script>", "two"], "description": "d"},
    {"file_name": "sub/a.png", "question": "how many?", "answer": "2"},
    {
        "file_name": "b.png",
        "conversation": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes"},
        ],
    },
]


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.png").write_bytes(png("red"))
    (folder / "sub" / "a.png").write_bytes(png("blue", (9, 5)))
    write(folder / "metadata.jsonl", lines(OWN))
    return folder


@pytest.mark.parametrize("ids", [None, (("b", "b1"), ("003a", "a1"), ("b", "b2"))])
def test_a_folder_of_ones_own_is_the_same_table_and_its_ids_may_be_text(own, ids):
    if ids:
        more = ({"image_id": i, "question_id": q} for i, q in ids)
        rows = [{**row, **of} for row, of in zip(OWN, more, strict=True)]
        write(own / "metadata.jsonl", lines(rows))
    table = read_folder(own)
    assert table.features == FEATURES
    assert table["image_id"][:] == [1, 2, 1]
    assert table["question_id"][:] == ([1, 2, 3] if ids else [None, 2, None])
    assert table[0]["captions"] == OWN[0]["captions"]
    assert table[1]["answers"] == ["2"] * 10
    assert table[2]["conversation"] == OWN[2]["conversation"]
    assert table[1]["image"].size == (9, 5)


def test_the_folder_is_also_one_that_datasets_reads_by_itself(own):
    write(own / "metadata.jsonl", lines({**row, "captions": []} for row in OWN[:2]))
    table = load_dataset("imagefolder", data_dir=str(own), split="train")
    assert table[1]["question"] == "how many?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "../b.png"}, "leaves the folder"),
        ({"file_name": "/etc/passwd"}, "leaves the folder"),
        ({"file_name": "link.png"}, "leaves the folder"),
        ({"file_name": "c.png"}, "1 of 3 images .*c.png"),
        ({"file_name": None}, "`line 3.file_name` is None"),
        ({"captoins": ["a"]}, "line 3: .*'captoins'.*file_name .*image_id, captions"),
        ({"image": "b.png"}, "line 3: .*'image'"),
        ({"captions": "a caption"}, "`line 3.captions` is 'a caption'"),
        ({"captions": ["a", 3]}, r"`line 3.captions\[1\]` is 3"),
        ({"captions": ["a", " "]}, r"`line 3.captions` .*\['a', ' '\]"),
        ({"question": " "}, "`line 3.question` is empty"),
        ({"answer": ""}, "`line 3.answer` is empty"),
        ({"conversation": [{"role": "user"}]}, r"`line 3.conversation\[0\].content`"),
        ({"image_id": " "}, "`line 3.image_id` is ' '"),
        ({"image_id": 9}, "'b.png' has image_id 9, and 1"),
        ({"file_name": "c.png", "image_id": 1}, "one image_id"),
    ],
)
def test_an_error_in_ones_own_folder_names_the_line_and_the_field(own, tmp_path, change, message):
    (tmp_path / "secret.png").write_bytes(png("red"))
    (own / "link.png").symlink_to(tmp_path / "secret.png")
    write(own / "metadata.jsonl", lines([*OWN[:2], OWN[2] | change]))
    with pytest.raises(UserError, match=f"metadata.jsonl.*{message}"):
        read_folder(own)


def rows(table):
    return [{**row, "image": np.asarray(row["image"]).tolist()} for row in table]


def test_what_is_written_is_read_back_equal(own, images, tmp_path):
    llava = read_llava(write(tmp_path / "llava.json", LLAVA), images)
    for number, table in enumerate((read_folder(own), llava)):
        write_folder(table, tmp_path / f"copy{number}")
        assert rows(read_folder(tmp_path / f"copy{number}")) == rows(table)


def test_a_sample_keeps_all_that_belongs_to_a_picture_and_a_seed_keeps_the_sample(own):
    table = read_folder(own)
    chosen = {tuple(sample(table, 1, seed)["image_id"][:]) for seed in range(9)}
    assert chosen == {(1, 1), (2,)}
    assert rows(sample(table, 1, 3)) == rows(sample(table, 1, 3))
    assert rows(sample(table, 2)) == rows(table)
    for count in (0, 3):
        with pytest.raises(UserError, match=f"{count} .* 2"):
            sample(table, count)


def test_a_row_without_a_picture_and_a_picture_that_is_none_are_not_written(tmp_path, own):
    file = write(tmp_path / "m.tsv", tabs([HEADER, cells(3, "B")]))
    with pytest.raises(UserError, match="image_id 3 "):
        write_folder(read_mmbench(file), tmp_path / "out")
    table = read_folder(own)
    (own / "b.png").write_bytes(b"<html>no picture</html>")
    with pytest.raises(UserError, match="b.png"):
        write_folder(table, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


KEYS = "image conversations from value text label question_id file_name captions".split()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=8,
)
FIXTURES = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=25, **FIXTURES)
@given(JSON)
def test_any_json_is_read_or_refused_with_a_clear_error(tmp_path, images, value):
    for read, file in ((read_llava, tmp_path / "x.json"), (read_pope, tmp_path / "x.jsonl")):
        write(file, json.dumps([value] if read is read_llava else value))
        with pytest.raises(UserError, match="x.json"):
            read(file, images)
    write(images / "metadata.jsonl", json.dumps(value))
    with pytest.raises(UserError, match="metadata.jsonl"):
        read_folder(images)


COLOURS = {"cats/001.png": "red", "dogs/001.png": "lime", "birds/001.png": "blue", "x.png": "white"}


def solid(folder, colours):
    for name, colour in colours.items():
        (folder / "many" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "many" / name).write_bytes(png(colour))


def read_names(kind, folder, names, **options):
    """The table of a file of `kind` that speaks of the images `names` in turn."""
    if kind == "llava":
        rows = [talk(name, "what?", "that") for name in names]
        return read_llava(write(folder / "l.json", rows), folder / "many", **options)
    rows = [{**POPE[0], "question_id": k, "image": name} for k, name in enumerate(names)]
    return read_pope(write(folder / "p.json", lines(rows)), folder / "many")


@pytest.mark.parametrize("kind", ["llava", "pope"])
@settings(max_examples=15, **FIXTURES)
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
    with pytest.raises(UserError, match="1 of 1 images"):
        read_names(kind, tmp_path, [asked])


def test_coco_s_numbers_stay_the_ids_and_where_two_files_have_one_a_choice_by_id_is_refused(
    tmp_path,
):
    names = ["a/000000000042.png", "b/000000000042.png", "a/000000000043.png"]
    solid(tmp_path, dict.fromkeys(names, "red"))
    assert read_names("llava", tmp_path, names[1:])["image_id"][:] == [42, 43]
    assert read_names("llava", tmp_path, names)["image_id"][:] == [1, 2, 3]
    assert read_names("llava", tmp_path, names, image_ids={43})["image_id"][:] == [43]
    with pytest.raises(UserError, match="a/0+42.png.*b/0+42.png.*image 42"):
        read_names("llava", tmp_path, names, image_ids={42})
