"""COCO's captions and VQA v2 as one table, its images as one tensor, and no path that leaves its folder."""

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import concatenate_datasets

from tests.data.official_files import JPG, PNG, picture
from tests.evals.official import png
from tests.small import refused
from vlm_lite.data.formats import FEATURES, image_tensor


def test_captions_are_read_one_row_an_image_in_file_order_and_no_picture_is_opened(world):
    world.captions["images"].append(
        {"id": 9, "file_name": "never_downloaded.jpg"}
    )  # and no caption
    data = world.read("captions")
    assert data.features == FEATURES
    assert data["image_id"][:] == [42, 7]
    assert data["captions"][:] == [["forty-two é"], ["seven a", "seven b"]]
    row = data[0]
    assert np.array_equal(row["image"], picture(42))
    assert row["question"] is row["question_id"] is row["description"] is None
    assert row["answers"] == row["conversation"] == []
    for path in world.images.iterdir():
        path.write_bytes(b"")
    assert len(world.read("captions")) == 2 and len(world.read("questions")) == 3


def test_vqa_is_read_one_row_a_question_in_file_order_and_joins_with_captions(world):
    data = world.read("questions", descriptions=world.write("descriptions"))
    assert data.features == FEATURES
    assert data["question_id"][:] == [70, 420, 71] and data["image_id"][:] == [7, 42, 7]
    assert data["question"][:] == ["how many?", "what colour?", "is it?"]
    assert data["question_type"][:] == ["how many", "what", "is it"]
    assert data["answer_type"][:] == ["number", "other", "yes/no"]
    assert data["answer"][:] == ["2", "red", "yes"]
    assert data["answers"][0] == ["2"] * 9 + ["other"]
    assert data["description"][:] == [world.descriptions[i] for i in ("7", "42", "7")]
    assert data[0]["image"].format == "JPEG" and data[1]["image"].format == "PNG"
    assert len(concatenate_datasets([world.read("captions"), data])) == 5


def test_only_the_image_ids_asked_for_are_read(world):
    (world.images / PNG).unlink()
    assert world.read("captions", image_ids={7})["image_id"][:] == [7]
    assert world.read("questions", image_ids=[7])["question_id"][:] == [70, 71]
    for name in ("captions", "questions"):
        with refused(f"{name}.json is empty or holds no {name}"):
            world.read(name, image_ids={8})


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_image_tensor_decodes_each_picture_once_in_first_seen_order(world):
    data = world.read("questions")
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
    with refused(r"000007.jpg is 3x11 .*40x10.*image_size="):
        image_tensor(world.read("captions"))
    pixels, _ = image_tensor(world.read("captions"), image_size=6)
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
    path, data = world.images / name, world.read("captions")
    if harm is None:
        path.unlink()
    else:
        path.write_bytes(harm(path.read_bytes()))
    with refused(f"{path} "):
        image_tensor(data)


@pytest.mark.parametrize("limit", [40, 20])  # Pillow warns above it and refuses above twice of it
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(world, monkeypatch, limit):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    with refused("000042.png .*decompression bomb"):
        image_tensor(world.read("captions"))


def test_no_rows_and_no_picture_are_reported(world):
    with refused("no pictures"):
        image_tensor(world.read("captions").select([]))
    with refused("image_id 42 is missing"):
        image_tensor(world.read("captions").map(lambda row: {"image": None}))


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
    with refused(f"{field}.* leaves the folder"):
        world.read("questions") if is_vqa else world.read("captions")


def test_a_link_inside_the_folder_and_a_linked_folder_are_fine_and_one_that_is_not_there_is_named(
    world,
):
    (world.images / "again.png").symlink_to(world.images / PNG)
    world.captions["images"][0]["file_name"] = "again.png"
    (world.folder / "other_name").symlink_to(world.images)
    world.images = world.folder / "other_name"
    assert image_tensor(world.read("captions"))[0].shape == (2, 3, 8, 8)
    world.images = world.folder / "nowhere"
    with refused("nowhere is not a folder"):
        world.read("captions")


def test_two_files_for_one_id_and_none_are_refused_and_text_ids_name_their_own_file(world):
    jpg = world.images / JPG
    jpg.with_suffix(".png").write_bytes(png("red"))
    with refused(r"7.jpg and COCO_.*7.png"):
        world.read("questions")
    jpg.with_suffix(".png").unlink()
    jpg.rename(world.images / "003a8.jpg")
    with refused(r"1 of 2 images .*7.jpg or COCO_.*7.png"):
        world.read("questions")
    (world.images / PNG).rename(world.images / "0042b.png")
    for row in world.questions["questions"] + world.annotations["annotations"]:
        row["image_id"] = {7: "003a8", 42: "0042b"}[row["image_id"]]
    data = world.read("questions")
    assert data["image_id"][:] == [1, 2, 1]  # numbered by first mention
    assert np.array_equal(data[1]["image"], picture(42))
