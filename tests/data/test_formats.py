"""The official readers, and the error for every kind of bad file."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import concatenate_datasets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.evals.official import png, vqa_note
from vlm_lite.data.formats import FEATURES, image_tensor, read_coco_captions, read_vqa
from vlm_lite.files import UserError

PNG, JPG = "COCO_val2014_000000000042.png", "COCO_val2014_000000000007.jpg"
WORDS = {"7": "seven in words", "42": "forty-two in words"}


def picture(seed, size=(8, 8)):
    rng = np.random.default_rng(seed)
    return PIL.Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))


class World:
    """Two pictures (ids 7 and 42) with captions and questions in the official formats, in a folder."""

    def __init__(self, folder):
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir()
        names = {42: PNG, 7: JPG}
        said = ((7, "seven a"), (42, "forty-two é"), (7, "seven b"))
        self.captions = {
            "info": {},
            "images": [{"id": i, "file_name": name, "height": 8} for i, name in names.items()],
            "annotations": [{"image_id": i, "caption": text} for i, text in said],
        }
        asked = ((70, 7, "how many?"), (420, 42, "what colour?"), (71, 7, "is it?"))
        self.questions = {
            "data_subtype": "val2014",
            "questions": [{"question_id": q, "image_id": i, "question": t} for q, i, t in asked],
        }
        self.annotations = {
            "data_subtype": "val2014",
            "annotations": [
                vqa_note(q, [answer] * 9 + ["other"], kind, of, image_id=i)
                for q, i, kind, of, answer in (
                    (71, 7, "is it", "yes/no", "yes"),
                    (70, 7, "how many", "number", "2"),
                    (420, 42, "what", "other", "red"),
                )
            ],
        }
        for i, name in names.items():
            picture(i).save(self.images / name)

    def write(self, name, value=None):
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(value or getattr(self, name)))
        return path

    def read_captions(self, **options):
        return read_coco_captions(self.write("captions"), self.images, **options)

    def read_vqa(self, **options):
        return read_vqa(self.write("questions"), self.write("annotations"), self.images, **options)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_captions_are_read_one_row_an_image_in_file_order_and_no_picture_is_opened(world):
    world.captions["images"].append(
        {"id": 9, "file_name": "never_downloaded.jpg"}
    )  # and no caption
    data = world.read_captions()
    assert data.features == FEATURES
    assert data["image_id"][:] == [42, 7]
    assert data["captions"][:] == [["forty-two é"], ["seven a", "seven b"]]
    row = data[0]
    assert np.array_equal(row["image"], picture(42))
    assert row["question"] is row["question_id"] is row["description"] is None
    assert row["answers"] == row["conversation"] == []
    for path in world.images.iterdir():
        path.write_bytes(b"")
    assert len(world.read_captions()) == 2 and len(world.read_vqa()) == 3


def test_vqa_is_read_one_row_a_question_in_file_order_and_joins_with_captions(world):
    data = world.read_vqa(descriptions=world.write("descriptions", WORDS))
    assert data.features == FEATURES
    assert data["question_id"][:] == [70, 420, 71] and data["image_id"][:] == [7, 42, 7]
    assert data["question"][:] == ["how many?", "what colour?", "is it?"]
    assert data["question_type"][:] == ["how many", "what", "is it"]
    assert data["answer_type"][:] == ["number", "other", "yes/no"]
    assert data["answer"][:] == ["2", "red", "yes"]
    assert data["answers"][0] == ["2"] * 9 + ["other"]
    assert data["description"][:] == [WORDS["7"], WORDS["42"], WORDS["7"]]
    assert data[0]["image"].format == "JPEG" and data[1]["image"].format == "PNG"
    assert len(concatenate_datasets([world.read_captions(), data])) == 5


def test_only_the_image_ids_asked_for_are_read(world):
    (world.images / PNG).unlink()
    assert world.read_captions(image_ids={7})["image_id"][:] == [7]
    assert world.read_vqa(image_ids=[7])["question_id"][:] == [70, 71]
    for read, what in ((world.read_captions, "captions"), (world.read_vqa, "questions")):
        with pytest.raises(UserError, match=f"{what}.json is empty or holds no {what}"):
            read(image_ids={8})


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_image_tensor_decodes_each_picture_once_in_first_seen_order(world):
    data = world.read_vqa()
    pixels, ids = image_tensor(data)
    assert (pixels.shape, pixels.dtype, ids) == ((2, 3, 8, 8), torch.uint8, [7, 42])
    assert torch.equal(pixels[1], tensor(picture(42)))
    swapped, ids = image_tensor(data.select([1, 0]))
    assert ids == [42, 7] and torch.equal(swapped, pixels.flip(0))
    held = data.select([0]).map(lambda row: {"image": {"bytes": png("red"), "path": None}})
    assert torch.equal(image_tensor(held)[0][0], tensor(PIL.Image.new("RGB", (64, 64), "red")))


def test_image_size_resizes_the_shorter_side_and_crops_the_centre(world):
    wide = PIL.Image.new("RGB", (40, 10), "red")
    wide.paste("blue", (10, 0, 30, 10))
    wide.save(world.images / PNG)
    picture(7, (3, 11)).save(world.images / JPG)
    with pytest.raises(UserError, match=r"000007.jpg is 3x11 .*40x10.*image_size="):
        image_tensor(world.read_captions())
    pixels, _ = image_tensor(world.read_captions(), image_size=6)
    assert pixels.shape == (2, 3, 6, 6)
    assert (pixels[0, 2] == 255).all() and (pixels[0, 0] == 0).all()  # the blue middle only


HARMS = [
    lambda data: data[:-60],
    lambda data: data[:60] + bytes([data[60] ^ 0xFF]) + data[61:],
    lambda data: b"",
    lambda data: b"<html>404</html>",
    None,
]


@pytest.mark.parametrize("name, harm", [(JPG, HARMS[0]), *((PNG, harm) for harm in HARMS)])
def test_a_corrupt_picture_is_named(world, name, harm):
    path, data = world.images / name, world.read_captions()
    if harm is None:
        path.unlink()
    else:
        path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path} "):
        image_tensor(data)


@pytest.mark.parametrize("limit", [40, 20])  # Pillow warns above it and refuses above twice of it
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(world, monkeypatch, limit):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match="000042.png .*decompression bomb"):
        image_tensor(world.read_captions())


def test_no_rows_and_no_picture_are_reported(world):
    with pytest.raises(UserError, match="no pictures"):
        image_tensor(world.read_captions().select([]))
    with pytest.raises(UserError, match="image_id 42 is missing"):
        image_tensor(world.read_captions().map(lambda row: {"image": None}))


OUTSIDE = "../outside.png a/../../outside.png {folder}/outside.png link.png linked/outside.png ."


@pytest.mark.parametrize("name", [*OUTSIDE.split(), "", "a\0b.png", "data_subtype"])
def test_an_image_path_that_leaves_its_folder_is_refused(world, name):
    (world.folder / "outside.png").write_bytes(png("red"))
    (world.images / "link.png").symlink_to(world.folder / "outside.png")
    (world.images / "linked").symlink_to(world.folder)
    world.captions["images"][0]["file_name"] = name.format(folder=world.folder)
    world.questions["data_subtype"] = world.annotations["data_subtype"] = "x/../../../outside"
    is_vqa = name == "data_subtype"
    field = "`data_subtype`" if is_vqa else r"`images\[\].file_name` makes .* \(image 42\)"
    with pytest.raises(UserError, match=f"{field}.* leaves the folder"):
        world.read_vqa() if is_vqa else world.read_captions()


def test_a_link_inside_the_folder_and_a_linked_folder_are_fine(world):
    (world.images / "again.png").symlink_to(world.images / PNG)
    world.captions["images"][0]["file_name"] = "again.png"
    (world.folder / "other_name").symlink_to(world.images)
    world.images = world.folder / "other_name"
    assert image_tensor(world.read_captions())[0].shape == (2, 3, 8, 8)


def spoil(data, path, value):
    """Set (or, without a value, delete) the place `path`, words with dots between, of a JSON value."""
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in parents:
        data = data[key]
    if value is None:
        del data[last]
    else:
        data[last] = value


@pytest.mark.parametrize(
    "file, path, value, message",
    [
        ("captions", "images", None, "`images` .*'info', 'annotations'"),
        ("captions", "annotations", None, "`annotations`"),
        ("captions", "annotations", {}, r"`annotations` is \{\}"),
        ("captions", "annotations", [], "no captions"),
        ("captions", "annotations.1", "x", r"annotations\[1\] is 'x'.*`image_id`"),
        ("captions", "annotations.1.caption", None, r"`annotations\[1\].caption`"),
        ("captions", "annotations.1.caption", 5, r"`annotations\[1\].caption` is 5"),
        ("captions", "annotations.1.caption", "\ud800", r"`annotations\[1\].caption`"),
        ("captions", "annotations.1.image_id", "42", "`images` .* '42'"),
        ("captions", "annotations.1.image_id", 8, "`images` .* 8"),
        ("captions", "annotations.1.image_id", True, r"`annotations\[1\].image_id` is True"),
        ("captions", "annotations.1.image_id", 2**63, r"`annotations\[1\].image_id`"),
        ("captions", "images.0.file_name", None, r"`images\[0\].file_name`"),
        ("captions", "images.0.file_name", "gone.png", "1 of 2 images .*gone.png"),
        ("captions", "images.1.id", 42, r"images\[1\].id is 42"),
        ("questions", "questions", None, "`questions`"),
        ("questions", "questions", [], "no questions"),
        ("questions", "data_subtype", None, "`data_subtype`"),
        ("questions", "data_subtype", "train2014", "'train2014' .*'val2014' .*annotations.json"),
        ("questions", "questions.1.question", 3, r"`questions\[1\].question` is 3"),
        ("questions", "questions.1.question_id", 70, r"questions\[0\].question_id is 70"),
        ("questions", "questions.1.question_id", 5, "question_id 5"),
        ("questions", "questions.1.image_id", 43, r"annotations\[2\].image_id is 42.*image 43"),
        ("annotations", "annotations.2.question_type", None, r"`annotations\[2\].question_type`"),
        ("annotations", "annotations.2.answers", ["a"] * 9, r"`annotations\[2\].answers` has 9"),
        (
            "annotations",
            "annotations.2.answers",
            ["a"] * 10,
            r"annotations\[2\].answers\[0\] is 'a'",
        ),
        ("annotations", "annotations.2.answers.4.answer", 2, r"answers\[4\].answer` is 2"),
        ("annotations", "annotations.2.answers.4.answer", None, r"answers\[4\].answer`"),
        ("annotations", "annotations.2.answers.4.answer", "\udfff", r"answers\[4\].answer`"),
    ],
)
def test_a_bad_file_is_named_with_its_field(world, file, path, value, message):
    spoil(getattr(world, file), path, value)
    with pytest.raises(UserError, match=message) as caught:
        world.read_captions() if file == "captions" else world.read_vqa()
    assert f"{file}.json" in str(caught.value)


def test_swapped_files_missing_folder_and_malformed_json_are_named(world):
    captions, questions, annotations = map(world.write, ("captions", "questions", "annotations"))
    with pytest.raises(UserError, match="questions.json: `annotations`"):
        read_vqa(annotations, questions, world.images)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_coco_captions(captions, world.folder / "nowhere")
    for text in ("[]", "3", "null", '{"images": ['):
        captions.write_text(text)
        with pytest.raises(UserError, match="captions.json[:,] (the top level|line 1 column 13)"):
            read_coco_captions(captions, world.images)


@pytest.mark.parametrize(
    "value, words", [({"7": "x"}, "`42`"), ({"7": "x", "42": 5}, "`42` is 5"), (["x"], "top level")]
)
def test_a_missing_description_is_named(world, value, words):
    with pytest.raises(UserError, match=f"descriptions.json: .*{words}"):
        world.read_captions(descriptions=world.write("descriptions", value))


KEYS = st.sampled_from(["id", "image_id", "file_name", "caption", "answers", "answer"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=6,
)


def places(node):
    for key in node if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from places(node[key])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, data=st.data())
def test_no_value_anywhere_makes_anything_but_a_user_error(tmp_path_factory, value, data):
    world = World(tmp_path_factory.mktemp("world"))
    name = data.draw(st.sampled_from(["captions", "questions", "annotations"]))
    parent, key = data.draw(st.sampled_from([*places(getattr(world, name))]))
    parent[key] = value
    try:
        world.read_captions() if name == "captions" else world.read_vqa()
    except UserError:
        pass


def test_two_files_for_one_id_and_none_are_refused_and_text_ids_name_their_own_file(world):
    jpg = world.images / JPG
    jpg.with_suffix(".png").write_bytes(png("red"))
    with pytest.raises(UserError, match=r"7.jpg and COCO_.*7.png"):
        world.read_vqa()
    jpg.with_suffix(".png").unlink()
    jpg.rename(world.images / "003a8.jpg")
    with pytest.raises(UserError, match=r"1 of 2 images .*7.jpg or COCO_.*7.png"):
        world.read_vqa()
    (world.images / PNG).rename(world.images / "0042b.png")
    for row in world.questions["questions"] + world.annotations["annotations"]:
        row["image_id"] = {7: "003a8", 42: "0042b"}[row["image_id"]]
    data = world.read_vqa()
    assert data["image_id"][:] == [1, 2, 1]  # numbered by first mention
    assert np.array_equal(data[1]["image"], picture(42))
