"""LLaVA-Instruct, POPE, MMBench, a folder of one's own, and samples: all into the one table, or a clear error."""

import base64
import csv
import io
import json

import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_lite.data.commands import sample, write_folder
from vlm_lite.data.formats import FEATURES, image_tensor
from vlm_lite.data.readers import read_folder, read_llava, read_mmbench, read_pope
from vlm_lite.files import UserError


def picture(seed, size=(8, 8)):
    return PIL.Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    )


def png(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    picture(42).save(folder / "000000000042.jpg")
    picture(7).save(folder / "COCO_train2014_000000000007.jpg")
    return folder


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def talk(*texts):
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]


LLAVA = [
    {
        "id": "42",
        "image": "000000000042.jpg",
        "conversations": talk("<image>\nwhat?", "é", "and?", "b"),
    },
    {
        "id": "7",
        "image": "coco/train2017/000000000007.jpg",
        "conversations": talk("why?\n<image>", "c"),
    },
    {
        "id": "000000000042",
        "image": "000000000042.jpg",
        "conversations": talk("<image>\nmore?", "d"),
    },
]


def test_conversations_take_turns_and_lose_the_image_mark_and_train2014s_pictures_will_do(
    tmp_path, images
):
    table = read_llava(write(tmp_path / "llava.json", LLAVA), images)
    assert table.features == FEATURES
    assert table["image_id"][:] == [42, 7, 42]
    assert table[0]["conversation"] == [
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": "é"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "b"},
    ]
    assert table[1]["conversation"][0]["content"] == "why?"
    assert image_tensor(table)[1] == [42, 7]
    assert len(read_llava(tmp_path / "llava.json", images, image_ids={7})) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"data": d}, "the top level is .*expected a list"),
        (lambda d: d[0].pop("image"), r"`\[0\].image` is missing"),
        (
            lambda d: d[1].update(image="cat.jpg"),
            "1 of 2 images are not in .*cat.jpg",
        ),
        (lambda d: d[0].update(image="../../000000000042.jpg"), "leaves the folder"),
        (lambda d: d[0].update(image="/etc/000000000042.jpg"), "leaves the folder"),
        (
            lambda d: d[1].update(image="000000000009.jpg"),
            "1 of 2 images are not in .*9.jpg or COCO_train2014",
        ),
        (
            lambda d: d[0]["conversations"].pop(),
            r"`\[0\].conversations` has 3 turns; expected pairs",
        ),
        (
            lambda d: d[0]["conversations"].reverse(),
            r"`\[0\].conversations\[0\].from` is 'gpt'; expected 'human'",
        ),
        (
            lambda d: d[2]["conversations"][1].update(value=" <image> "),
            r"`\[2\].conversations\[1\].value` is empty",
        ),
        (lambda d: d[2].update(conversations=[]), "has 0 turns"),
        (lambda d: d.clear(), "holds no conversations"),
    ],
)
def test_an_error_in_llavas_file_names_the_entry_and_the_field(tmp_path, images, change, message):
    data = json.loads(json.dumps(LLAVA))
    changed = change(data)
    file = write(
        tmp_path / "llava.json",
        changed if isinstance(changed, dict) and "data" in changed else data,
    )
    with pytest.raises(UserError, match=message) as raised:
        read_llava(file, images)
    assert "llava.json" in str(raised.value)


POPE = [
    {
        "question_id": 1,
        "image": "000000000042.jpg",
        "text": "Is there a cat in the image?",
        "label": "yes",
    },
    {
        "question_id": 2,
        "image": "000000000042.jpg",
        "text": "Is there a dog in the image?",
        "label": "no",
    },
]


def test_pope_is_read_with_its_label_as_ten_answers(tmp_path, images):
    table = read_pope(write(tmp_path / "pope.json", "\n".join(map(json.dumps, POPE))), images)
    assert table.features == FEATURES
    assert table[1] | {"image": None} == {
        "image": None,
        "image_id": 42,
        "captions": [],
        "question_id": 2,
        "question": "Is there a dog in the image?",
        "question_type": "existence",
        "answer_type": "yes/no",
        "answer": "no",
        "answers": ["no"] * 10,
        "conversation": [],
        "description": None,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "line 2.label is 'maybe'; expected yes or no"),
        ({"text": 3}, "`line 2.text` is 3; expected text"),
        ({"image": "../000000000043.jpg"}, "leaves the folder"),
        ({"question_id": -1}, "`line 2.question_id` is -1"),
    ],
)
def test_an_error_in_popes_file_names_the_line(tmp_path, images, change, message):
    file = write(tmp_path / "pope.json", "\n".join(map(json.dumps, [POPE[0], POPE[1] | change])))
    with pytest.raises(UserError, match=message):
        read_pope(file, images)


def mmbench(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "question", "hint", "A", "B", "C", "answer", "category", "image"])
        writer.writerows(rows)
    return path


def test_mmbench_writes_hint_and_options_into_the_question_and_decodes_the_picture(tmp_path):
    image = base64.b64encode(png(3)).decode()
    file = mmbench(
        tmp_path / "m.tsv",
        [
            [3, "what is it?", "look well", "a cat", "a dog", "", "B", "things", image],
            [1000003, "what is it?", "", "a dog", "a cat", "", "A", "things", "3"],
        ],
    )
    table = read_mmbench(file)
    assert table.features == FEATURES
    assert table["question"][:] == [
        "look well\nwhat is it?\nA. a cat\nB. a dog",
        "what is it?\nA. a dog\nB. a cat",
    ]
    assert table["answer"][:] == ["B", "A"] and table["image_id"][:] == [3, 3]
    assert table["question_id"][:] == [3, 1000003]
    assert np.array_equal(np.asarray(table[1]["image"]), np.asarray(picture(3)))


OWN = [
    {
        "file_name": "b.png",
        "captions": ["<script>alert(1)</script>", "two"],
        "description": "words",
    },
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
    picture(1).save(folder / "b.png")
    picture(2, (9, 5)).save(folder / "sub" / "a.png")
    write(folder / "metadata.jsonl", "\n".join(map(json.dumps, OWN)))
    return folder


def test_a_folder_of_ones_own_is_the_same_table(own):
    table = read_folder(own)
    assert table.features == FEATURES
    assert table["image_id"][:] == [1, 2, 1]
    assert table[0]["captions"] == OWN[0]["captions"]
    assert table[1]["question_id"] == 2 and table[1]["answers"] == ["2"] * 10
    assert table[2]["conversation"] == OWN[2]["conversation"]
    assert table[1]["image"].size == (9, 5)


def test_the_ids_of_ones_own_folder_may_be_text(own):
    ids = [{"image_id": k, "question_id": q} for k, q in (("b", "b1"), ("003a", "a1"), ("b", "b2"))]
    write(
        own / "metadata.jsonl",
        "\n".join(json.dumps({**row, **more}) for row, more in zip(OWN, ids, strict=True)),
    )
    table = read_folder(own)
    assert table["image_id"][:] == [1, 2, 1] and table["question_id"][:] == [1, 2, 3]
    assert table[1]["image"].size == (9, 5)


def test_the_folder_is_also_one_that_datasets_reads_by_itself(own):
    from datasets import load_dataset

    write(own / "metadata.jsonl", "\n".join(json.dumps({**row, "captions": []}) for row in OWN[:2]))
    assert (
        load_dataset("imagefolder", data_dir=str(own), split="train")[1]["question"] == "how many?"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "../b.png"}, "leaves the folder"),
        ({"file_name": "/etc/passwd"}, "leaves the folder"),
        ({"file_name": "c.png"}, "1 of 3 images are not in .*c.png"),
        ({"file_name": None}, "`line 3.file_name` is None; expected text"),
        (
            {"captoins": ["a"]},
            "line 3: unknown field 'captoins'. Expected file_name and any of image_id, captions",
        ),
        ({"image": "b.png"}, "line 3: unknown field 'image'"),
        ({"captions": "a caption"}, "`line 3.captions` is 'a caption'; expected a list"),
        ({"captions": ["a", 3]}, r"`line 3.captions\[1\]` is 3; expected text"),
        ({"captions": ["a", " "]}, r"`line 3.captions` has an empty one \(\['a', ' '\]\)"),
        ({"question": " "}, "`line 3.question` is empty"),
        ({"answer": ""}, "`line 3.answer` is empty"),
        ({"conversation": [{"role": "user"}]}, r"`line 3.conversation\[0\].content` is missing"),
        (
            {"image_id": " "},
            "`line 3.image_id` is ' '; expected a whole number of 0 or more, or text",
        ),
        ({"image_id": 9}, "'b.png' has image_id 9, and 1 in a line before it"),
        ({"file_name": "c.png", "image_id": 1}, "two pictures have one image_id"),
    ],
)
def test_an_error_in_ones_own_folder_names_the_line_and_the_field(own, change, message):
    write(own / "metadata.jsonl", "\n".join(map(json.dumps, [*OWN[:2], OWN[2] | change])))
    with pytest.raises(UserError, match=message):
        read_folder(own)
    write(own / "metadata.jsonl", '{"file_name": "b.png"}\n{"file_na')
    with pytest.raises(UserError, match="metadata.jsonl, line 2: not valid JSON"):
        read_folder(own)


def test_a_link_that_leaves_the_folder_is_refused(own, tmp_path):
    picture(5).save(tmp_path / "secret.png")
    (own / "link.png").symlink_to(tmp_path / "secret.png")
    write(own / "metadata.jsonl", '{"file_name": "link.png"}')
    with pytest.raises(UserError, match="leaves the folder"):
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
        with pytest.raises(UserError, match=f"{count} pictures were asked for; the data set has 2"):
            sample(table, count)


def test_a_row_without_a_picture_and_a_picture_that_is_none_are_not_written(tmp_path, own):
    file = mmbench(tmp_path / "m.tsv", [[3, "what?", "", "a", "b", "", "B", "x", ""]])
    with pytest.raises(UserError, match="image_id 3 has no picture"):
        write_folder(read_mmbench(file), tmp_path / "out")
    table = read_folder(own)
    (own / "b.png").write_bytes(b"<html>no picture</html>")
    with pytest.raises(UserError, match="b.png cannot be copied: it is damaged, or not a picture"):
        write_folder(table, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "image",
                    "conversations",
                    "from",
                    "value",
                    "text",
                    "label",
                    "question_id",
                    "file_name",
                    "captions",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(JSON)
def test_any_json_is_read_or_refused_with_a_clear_error(tmp_path, images, value):
    for read, file in ((read_llava, tmp_path / "x.json"), (read_pope, tmp_path / "x.jsonl")):
        write(file, [value] if read is read_llava else json.dumps(value))
        with pytest.raises(UserError, match="x.json"):
            read(file, images)
    write(images / "metadata.jsonl", json.dumps(value))
    with pytest.raises(UserError):
        read_folder(images)


def solid(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (4, 4), colour).save(path)


COLOURS = {"cats/001.png": "red", "dogs/001.png": "lime", "birds/001.png": "blue", "x.png": "white"}


def read_names(kind, folder, names, **options):
    """The table of a file of `kind` that speaks of the images `names` in turn."""
    if kind == "llava":
        rows = [{"image": name, "conversations": talk("what?", "that")} for name in names]
        return read_llava(write(folder / "l.json", rows), folder / "many", **options)
    rows = [
        {"question_id": k, "image": name, "text": "is it?", "label": "no"}
        for k, name in enumerate(names)
    ]
    return read_pope(write(folder / "p.json", "\n".join(map(json.dumps, rows))), folder / "many")


@pytest.mark.parametrize("kind", ["llava", "pope"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.lists(st.sampled_from(list(COLOURS)), min_size=1, max_size=6))
def test_every_row_has_the_image_of_its_own_path(tmp_path, kind, names):
    for name, colour in COLOURS.items():
        solid(tmp_path / "many" / name, colour)
    table = read_names(kind, tmp_path, names)
    shown = [row["image"].getpixel((0, 0)) for row in table]
    assert shown == [PIL.ImageColor.getrgb(COLOURS[name]) for name in names]
    ids = dict(zip(names, table["image_id"][:], strict=True))
    assert table["image_id"][:] == [ids[name] for name in names]
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("kind", ["llava", "pope"])
@pytest.mark.parametrize(
    "asked, there",
    [
        ("gqa/000000000007.jpg", "COCO_train2014_000000000007.jpg"),
        ("val2017/000000000007.jpg", "COCO_train2014_000000000007.jpg"),
        ("7.jpg", "COCO_train2014_000000000007.jpg"),
        ("photo_000000000007.jpg", "COCO_train2014_000000000007.jpg"),
        ("000000000007.png", "COCO_train2014_000000000007.jpg"),
        ("COCO_val2014_000000000007.jpg", "COCO_train2014_000000000007.jpg"),
        ("cats/001.png", "dogs/001.png"),
        ("cats/001.png", "001.png"),
    ],
)
def test_no_other_data_set_s_file_stands_in_for_a_missing_one(tmp_path, kind, asked, there):
    solid(tmp_path / "many" / there, "red")
    with pytest.raises(UserError, match="1 of 1 images are not in"):
        read_names(kind, tmp_path, [asked])


def test_coco_s_numbers_stay_the_ids_and_where_two_files_have_one_a_choice_by_id_is_refused(
    tmp_path,
):
    names = ["a/000000000042.png", "b/000000000042.png", "a/000000000043.png"]
    for name in names:
        solid(tmp_path / "many" / name, "red")
    assert read_names("llava", tmp_path, names[1:])["image_id"][:] == [42, 43]
    assert read_names("llava", tmp_path, names)["image_id"][:] == [1, 2, 3]
    assert read_names("llava", tmp_path, names, image_ids={43})["image_id"][:] == [43]
    with pytest.raises(UserError, match="a/0+42.png.*b/0+42.png.*image 42"):
        read_names("llava", tmp_path, names, image_ids={42})
