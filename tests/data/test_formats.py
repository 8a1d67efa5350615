"""The official readers, and the error for every kind of bad file."""

import io
import json
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_lite.data.formats import FEATURES, image_tensor, read_coco_captions, read_vqa
from vlm_lite.files import UserError


def picture(seed, size=(8, 8), mode="RGB"):
    return PIL.Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    ).convert(mode)


class World:
    """Two pictures (ids 7 and 42) with captions and questions in the official formats, in a folder."""

    def __init__(self, folder):
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir()
        self.captions = {
            "info": {},
            "licenses": [],
            "images": [
                {"id": 42, "file_name": "COCO_val2014_000000000042.png", "height": 8},
                {"id": 7, "file_name": "COCO_val2014_000000000007.jpg"},
            ],
            "annotations": [
                {"id": 1, "image_id": 7, "caption": "seven a"},
                {"id": 2, "image_id": 42, "caption": "forty-two é"},
                {"id": 3, "image_id": 7, "caption": "seven b"},
            ],
        }
        self.questions = {
            "data_subtype": "val2014",
            "questions": [
                {"question_id": 70, "image_id": 7, "question": "how many?"},
                {"question_id": 420, "image_id": 42, "question": "what colour?"},
                {"question_id": 71, "image_id": 7, "question": "is it?"},
            ],
        }
        self.annotations = {
            "data_subtype": "val2014",
            "annotations": [
                {
                    "question_id": q,
                    "image_id": i,
                    "question_type": t,
                    "answer_type": a,
                    "multiple_choice_answer": m,
                    "answers": [
                        {
                            "answer": m if k < 9 else "other",
                            "answer_confidence": "yes",
                            "answer_id": k + 1,
                        }
                        for k in range(10)
                    ],
                }
                for q, i, t, a, m in (
                    (71, 7, "is it", "yes/no", "yes"),
                    (70, 7, "how many", "number", "2"),
                    (420, 42, "what", "other", "red"),
                )
            ],
        }
        self.descriptions = {"7": "seven in words", "42": "forty-two in words"}
        picture(42).save(self.images / "COCO_val2014_000000000042.png")
        picture(7).save(self.images / "COCO_val2014_000000000007.jpg")

    def write(self, name):
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(getattr(self, name)))
        return path

    def read_captions(self, **options):
        return read_coco_captions(self.write("captions"), self.images, **options)

    def read_vqa(self, **options):
        return read_vqa(self.write("questions"), self.write("annotations"), self.images, **options)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_captions_are_read_one_row_an_image_in_file_order(world):
    data = world.read_captions()
    assert data.features == FEATURES
    assert data["image_id"][:] == [42, 7]
    assert data["captions"][:] == [["forty-two é"], ["seven a", "seven b"]]
    row = data[0]
    assert np.array_equal(row["image"], picture(42))
    assert row["question"] is row["question_id"] is row["description"] is None
    assert row["answers"] == row["conversation"] == []


def test_vqa_is_read_one_row_a_question_in_file_order(world):
    data = world.read_vqa(descriptions=world.write("descriptions"))
    assert data.features == FEATURES
    assert data["question_id"][:] == [70, 420, 71] and data["image_id"][:] == [7, 42, 7]
    assert data["question"][:] == ["how many?", "what colour?", "is it?"]
    assert data["question_type"][:] == ["how many", "what", "is it"]
    assert data["answer_type"][:] == ["number", "other", "yes/no"]
    assert data["answer"][:] == ["2", "red", "yes"]
    assert data["answers"][0] == ["2"] * 9 + ["other"]
    assert data["description"][:] == ["seven in words", "forty-two in words", "seven in words"]
    assert data[0]["image"].format == "JPEG" and data[1]["image"].format == "PNG"


def test_captions_and_vqa_rows_can_be_joined_to_one_table(world):
    from datasets import concatenate_datasets

    assert len(concatenate_datasets([world.read_captions(), world.read_vqa()])) == 5


def test_only_the_image_ids_asked_for_are_read(world):
    (world.images / "COCO_val2014_000000000042.png").unlink()
    assert world.read_captions(image_ids={7})["image_id"][:] == [7]
    assert world.read_vqa(image_ids=[7])["question_id"][:] == [70, 71]
    with pytest.raises(UserError, match="holds no captions about the 1 image_ids asked for"):
        world.read_captions(image_ids={8})
    with pytest.raises(UserError, match="holds no questions about"):
        world.read_vqa(image_ids={8})


def test_an_image_without_captions_is_no_row_and_need_not_be_there(world):
    world.captions["images"].append({"id": 9, "file_name": "never_downloaded.jpg"})
    assert world.read_captions()["image_id"][:] == [42, 7]


def test_reading_opens_no_picture(world):
    for path in world.images.iterdir():
        path.write_bytes(b"")
    assert len(world.read_captions()) == 2 and len(world.read_vqa()) == 3


# ---------------------------------------------------------------- image_tensor


def test_image_tensor_decodes_each_picture_once_in_first_seen_order(world):
    data = world.read_vqa()
    pixels, ids = image_tensor(data)
    assert (pixels.shape, pixels.dtype, ids) == ((2, 3, 8, 8), torch.uint8, [7, 42])
    assert torch.equal(pixels[1], torch.from_numpy(np.array(picture(42))).permute(2, 0, 1))
    swapped, ids = image_tensor(data.select([1, 0]))
    assert ids == [42, 7] and torch.equal(swapped, pixels.flip(0))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_pictures_of_any_mode_become_rgb(world, mode):
    picture(1, mode=mode).save(world.images / "COCO_val2014_000000000042.png")
    pixels, _ = image_tensor(world.read_captions())
    assert torch.equal(
        pixels[0], torch.from_numpy(np.array(picture(1, mode=mode).convert("RGB"))).permute(2, 0, 1)
    )


def test_pictures_held_as_bytes_are_decoded_too(world):
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    data = (
        world.read_captions()
        .select([0])
        .map(lambda row: {"image": {"bytes": buffer.getvalue(), "path": None}})
    )
    assert torch.equal(
        image_tensor(data)[0][0], torch.from_numpy(np.array(picture(3))).permute(2, 0, 1)
    )


def test_image_size_resizes_the_shorter_side_and_crops_the_centre(world):
    wide = PIL.Image.new("RGB", (40, 10), "red")
    wide.paste("blue", (10, 0, 30, 10))
    wide.save(world.images / "COCO_val2014_000000000042.png")
    picture(7, (3, 11)).save(world.images / "COCO_val2014_000000000007.jpg")
    with pytest.raises(
        UserError, match=r"000007.jpg is 3x11 pixels, .* are 40x10. Pass image_size="
    ):
        image_tensor(world.read_captions())
    pixels, _ = image_tensor(world.read_captions(), image_size=6)
    assert pixels.shape == (2, 3, 6, 6)
    assert (pixels[0, 2] == 255).all() and (pixels[0, 0] == 0).all()  # the blue middle only


def truncated(path):
    path.write_bytes(path.read_bytes()[:-60])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        flipped,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("<html>404</html>"),
    ],
    ids=["truncated", "flipped bit", "empty", "a web page"],
)
def test_a_corrupt_picture_is_named(world, spoil):
    path = world.images / "COCO_val2014_000000000042.png"
    data = world.read_captions()
    spoil(path)
    with pytest.raises(UserError, match=f"{path} cannot be decoded"):
        image_tensor(data)


def test_a_truncated_jpeg_is_named(world):
    path = world.images / "COCO_val2014_000000000007.jpg"
    truncated(path)
    with pytest.raises(UserError, match=f"{path} cannot be decoded"):
        image_tensor(world.read_captions())


def test_a_picture_deleted_meanwhile_is_named(world):
    data = world.read_captions()
    (world.images / "COCO_val2014_000000000042.png").unlink()
    with pytest.raises(UserError, match="000042.png does not exist"):
        image_tensor(data)


@pytest.mark.parametrize(
    "limit", [40, 20]
)  # Pillow warns above its limit and refuses above twice of it
def test_a_decompression_bomb_is_refused(world, monkeypatch, limit):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    with (
        warnings.catch_warnings(),
        pytest.raises(UserError, match="000042.png is refused: .*decompression bomb"),
    ):
        warnings.simplefilter("ignore")
        image_tensor(world.read_captions())


def test_no_rows_and_no_picture_are_reported(world):
    with pytest.raises(UserError, match="no rows"):
        image_tensor(world.read_captions().select([]))
    empty = world.read_captions().map(lambda row: {"image": None})
    with pytest.raises(UserError, match="image_id 42 is missing"):
        image_tensor(empty)


# ---------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    "name",
    [
        "../outside.png",
        "a/../../outside.png",
        "{folder}/outside.png",
        "link.png",
        "linked/outside.png",
        ".",
        "",
        "a\0b.png",
    ],
)
@pytest.mark.parametrize("of", ["captions", "vqa"])
def test_an_image_path_that_leaves_its_folder_is_refused(world, name, of):
    picture(0).save(world.folder / "outside.png")
    (world.images / "link.png").symlink_to(world.folder / "outside.png")
    (world.images / "linked").symlink_to(world.folder)
    if of == "captions":
        world.captions["images"][0]["file_name"] = name.format(folder=world.folder)
        with pytest.raises(
            UserError,
            match=r"`images\[\].file_name` makes .* \(image 42\), which leaves the folder",
        ):
            world.read_captions()
    else:
        world.questions["data_subtype"] = world.annotations["data_subtype"] = "x/../../../outside"
        with pytest.raises(UserError, match="`data_subtype` makes .* which leaves the folder"):
            world.read_vqa()


def test_a_link_inside_the_folder_and_a_linked_folder_are_fine(world):
    (world.images / "again.png").symlink_to(world.images / "COCO_val2014_000000000042.png")
    world.captions["images"][0]["file_name"] = "again.png"
    (world.folder / "other_name").symlink_to(world.images)
    world.images = world.folder / "other_name"
    assert image_tensor(world.read_captions())[0].shape == (2, 3, 8, 8)


def spoil(path, value):
    """A function that sets (or, without a value, deletes) the place `path` of a JSON value."""

    def change(data):
        *parents, last = path
        for key in parents:
            data = data[key]
        if value is None:
            del data[last]
        else:
            data[last] = value

    return change


@pytest.mark.parametrize(
    "path, value, message",
    [
        (
            ["images"],
            None,
            r"captions.json: `images` is missing \(found: 'info', 'licenses', 'annotations'\)",
        ),
        (["annotations"], None, "`annotations` is missing"),
        (["annotations"], {}, r"`annotations` is \{\}; expected a list"),
        (
            ["annotations", 1],
            "x",
            r"annotations\[1\] is 'x'; expected an object with the field `image_id`",
        ),
        (["annotations", 1, "caption"], None, r"`annotations\[1\].caption` is missing"),
        (["annotations", 1, "caption"], 5, r"`annotations\[1\].caption` is 5; expected text"),
        (["annotations", 1, "caption"], "\ud800", "expected text"),
        (
            ["annotations", 1, "image_id"],
            "42",
            r"1 caption\(s\) belong to an image that `images` does not list, .* '42'\.",
        ),
        (["annotations", 1, "image_id"], True, "is True; expected a whole number"),
        (["annotations", 1, "image_id"], 2**63, "expected a whole number"),
        (
            ["annotations", 1, "image_id"],
            8,
            r"1 caption\(s\) belong to an image that `images` does not list, .* 8\.",
        ),
        (["images", 0, "file_name"], None, r"`images\[0\].file_name` is missing"),
        (
            ["images", 0, "file_name"],
            "gone.png",
            r"1 of 2 images are not in .*images, for example gone.png",
        ),
        (["images", 1, "id"], 42, r"images\[1\].id is 42, which an image before it has"),
        (["annotations"], [], "holds no captions: the data set is empty"),
    ],
)
def test_a_bad_captions_file_is_named_with_its_field(world, path, value, message):
    spoil(path, value)(world.captions)
    with pytest.raises(UserError, match=message) as caught:
        world.read_captions()
    assert "captions.json" in str(caught.value)


@pytest.mark.parametrize(
    "file, path, value, message",
    [
        ("questions", ["questions"], None, "questions.json: `questions` is missing"),
        ("questions", ["data_subtype"], None, "questions.json: `data_subtype` is missing"),
        (
            "questions",
            ["data_subtype"],
            "train2014",
            "'train2014' in .*questions.json and 'val2014' in .*annotations.json",
        ),
        (
            "questions",
            ["questions", 1, "question"],
            3,
            r"`questions\[1\].question` is 3; expected text",
        ),
        (
            "questions",
            ["questions", 1, "question_id"],
            70,
            r"questions\[1\].question_id is 70",
        ),
        (
            "questions",
            ["questions", 1, "question_id"],
            5,
            r"1 question\(s\) of .* have no annotation, .* question_id 5",
        ),
        (
            "questions",
            ["questions", 1, "image_id"],
            43,
            r"annotations\[2\].image_id is 42, but .* 420 about image 43",
        ),
        ("questions", ["questions"], [], "holds no questions: the data set is empty"),
        (
            "annotations",
            ["annotations", 2, "question_type"],
            None,
            r"`annotations\[2\].question_type` is missing",
        ),
        (
            "annotations",
            ["annotations", 2, "answers"],
            ["red"] * 9,
            r"`annotations\[2\].answers` has 9 entries",
        ),
        (
            "annotations",
            ["annotations", 2, "answers"],
            ["red"] * 10,
            r"annotations\[2\].answers\[0\] is 'red'",
        ),
        (
            "annotations",
            ["annotations", 2, "answers", 4, "answer"],
            2,
            r"`annotations\[2\].answers\[4\].answer` is 2",
        ),
        (
            "annotations",
            ["annotations", 2, "answers", 4, "answer"],
            None,
            r"\[2\].answers\[4\].answer` is missing",
        ),
    ],
)
def test_a_bad_vqa_file_is_named_with_its_field(world, file, path, value, message):
    spoil(path, value)(getattr(world, file))
    with pytest.raises(UserError, match=message):
        world.read_vqa()


def test_a_question_whose_picture_is_not_on_the_disk_is_named(world):
    (world.images / "COCO_val2014_000000000007.jpg").unlink()
    with pytest.raises(
        UserError, match=r"1 of 2 images are not in .*_000000000007.jpg or COCO_.*7.png"
    ):
        world.read_vqa()


def test_swapped_files_missing_folder_and_malformed_json_are_named(world):
    captions, questions, annotations = (
        world.write(n) for n in ("captions", "questions", "annotations")
    )
    with pytest.raises(UserError, match="questions.json: `annotations` is missing .*another kind"):
        read_vqa(annotations, questions, world.images)
    with pytest.raises(UserError, match="questions.json: `annotations` is missing .*data_subtype"):
        read_coco_captions(questions, world.images)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_coco_captions(captions, world.folder / "nowhere")
    for text in ("[]", "3", "null"):
        captions.write_text(text)
        with pytest.raises(UserError, match="captions.json: the top level is"):
            read_coco_captions(captions, world.images)
    captions.write_text('{"images": [')
    with pytest.raises(UserError, match="captions.json, line 1 column 13"):
        read_coco_captions(captions, world.images)


def test_a_missing_description_is_named(world):
    world.descriptions.pop("42")
    with pytest.raises(
        UserError, match=r"descriptions.json: 1 image\(s\) have no description, .* image_id 42"
    ):
        world.read_captions(descriptions=world.write("descriptions"))
    world.descriptions = {"7": "x", "42": 5}
    with pytest.raises(UserError, match="`42` is 5; expected text"):
        world.read_vqa(descriptions=world.write("descriptions"))
    world.descriptions = ["x"]
    with pytest.raises(UserError, match="the top level is"):
        world.read_vqa(descriptions=world.write("descriptions"))


KEYS = st.sampled_from(["id", "image_id", "file_name", "caption", "answers", "answer"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=6,
)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=JSON, data=st.data())
def test_no_value_anywhere_makes_anything_but_a_user_error(tmp_path_factory, value, data):
    world = World(tmp_path_factory.mktemp("world"))
    name = data.draw(st.sampled_from(["captions", "questions", "annotations"]))
    node, places = getattr(world, name), []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(node)
    parent, key = data.draw(st.sampled_from(places))
    parent[key] = value
    try:
        world.read_captions() if name == "captions" else world.read_vqa()
    except UserError:
        pass


def test_two_files_for_one_id_are_refused_and_text_ids_name_their_own_file(world):
    picture(1).save(world.images / "COCO_val2014_000000000007.png")
    with pytest.raises(UserError, match=r"7.jpg and COCO_.*7.png .*both"):
        world.read_vqa()
    (world.images / "COCO_val2014_000000000007.png").unlink()
    for rows in (world.questions["questions"], world.annotations["annotations"]):
        for row in rows:
            row["image_id"] = {7: "003a8", 42: "0042b"}[row["image_id"]]
    (world.images / "COCO_val2014_000000000007.jpg").rename(world.images / "003a8.jpg")
    (world.images / "COCO_val2014_000000000042.png").rename(world.images / "0042b.png")
    data = world.read_vqa()
    assert data["image_id"][:] == [1, 2, 1]  # numbered by first mention
    assert np.array_equal(data[1]["image"], picture(42))
