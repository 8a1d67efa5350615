"""The photographic world says what it shows: places, numbers and names are right, and its tests are kept apart."""

import io
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from vlm_lite.files import UserError
from vlm_lite.lessons import cutouts


@pytest.fixture(scope="module")
def parts():
    folder = cutouts.draw_parts()
    there = cutouts.read_cutouts(folder), cutouts.read_backgrounds(folder)
    return SimpleNamespace(cutouts=there[0], backgrounds=there[1])


@pytest.fixture(scope="module")
def made(parts):
    return {
        s: cutouts.make_world(parts.cutouts, parts.backgrounds, s, 24, size=64)
        for s in cutouts.SPLITS
    }


def rows(table, kind):
    return [row for row in table if row["question_type"] == kind]


def test_each_of_several_things_lies_in_its_quarter_and_one_alone_is_large(parts):
    black = PIL.Image.new("RGB", (300, 300))
    for seed in range(8):
        quarters = np.random.default_rng(seed).permutation(4)[: 1 + seed % 3].tolist()
        things = parts.cutouts[: len(quarters)]
        image = cutouts.compose(np.random.default_rng(seed), things, quarters, black, 64)
        rows, columns = (image.any((2, axis)).nonzero()[0] for axis in (1, 0))
        if len(quarters) == 1:
            assert max(np.ptp(rows), np.ptp(columns)) > 40
            continue
        for quarter in range(4):
            top, left = quarter // 2 * 32, quarter % 2 * 32
            assert image[top : top + 32, left : left + 32].any() == (quarter in quarters)


def test_answers_are_those_of_the_scene_that_the_oracle_reads(made):
    for _, captions, turns, table in made.values():
        assert turns[0][0] == (cutouts.CAPTION_REQUEST, captions[0][0])
        for row in rows(table, "how many"):
            told = sum(row["description"].count(f"at the {each}") for each in cutouts.QUARTERS)
            assert row["answer"] == cutouts.NUMBERS[max(1, told)]
        for row in rows(table, "where"):
            thing = row["question"].removeprefix("Where is the ").rstrip("?")
            place = row["answer"].removeprefix(f"The {thing} is ").rstrip(".")
            assert place.startswith("at the ") and f"{thing} {place}" in row["description"]
        for row in rows(table, "is there"):
            thing = row["question"].removeprefix("Is there ").removesuffix(" in the image?")
            assert row["answer"].startswith("Yes") == (
                thing in row["description"].lower().replace("and ", "")
            )
        for row in rows(table, "what"):
            assert captions[row["image_id"]] == [row["answer"]]
        assert all(row["answers"] == [row["answer"]] * 10 for row in table)


def test_the_tests_are_kept_apart_and_a_seed_makes_the_same_world(parts, made):
    split = cutouts.split_cutouts(parts.cutouts)
    names = {s: {each.name for each in split[s]} for s in split}
    assert names["another"] <= names["train"] and not names["new"] & names["train"]
    assert not {e.path for e in split["another"]} & {e.path for e in split["train"]}
    assert {each.kind for each in split["new"]} == set(cutouts.KINDS.values())
    said = " ".join(f"{q} {a}" for turns in made["train"][2] for q, a in turns).lower()
    assert not [name for name in names["new"] if f"{name.split(' ', 1)[1]}." in said]
    again = cutouts.make_world(parts.cutouts, parts.backgrounds, "same", 24, size=64)
    assert (again[0] == made["same"][0]).all() and again[2] == made["same"][2]
    other = cutouts.make_world(parts.cutouts, parts.backgrounds, "same", 24, size=64, seed=1)
    assert (other[0] != made["same"][0]).any()


def test_no_test_shows_a_background_of_the_training(parts):
    grounds = [PIL.Image.new("RGB", (300, 300), (10 * k, 0, 0)) for k in range(10)]
    seen = {}
    for split in ("train", "same"):
        images = cutouts.make_world(parts.cutouts, grounds, split, 40, size=64)[0]
        corners = images[:, :, ::63, ::63].flatten(2)  # of four corners one at least is free
        seen[split] = {
            k
            for k in range(10)
            if (corners == images.new_tensor([10 * k, 0, 0])[:, None]).all(1).any()
        }
    assert seen["same"] == {0, 5} and seen["train"] == set(range(10)) - {0, 5}


def test_cartoons_and_sentences_are_left_out_and_an_empty_folder_is_refused(tmp_path):
    for name, words in {
        "animals/dog": "A dog.",
        "animals/cartoon/cat": "A cat.",
        "food/lunch": "Eat your lunch!",
        "symbols/letter": "A letter.",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGBA", (4, 4)).save(path.with_suffix(".png"))
        path.with_suffix(".txt").write_text(words)
    assert [(each.name, each.kind) for each in cutouts.read_cutouts(tmp_path)] == [
        ("a dog", "It is an animal.")
    ]
    with pytest.raises(UserError, match="holds no cut-outs"):
        cutouts.read_cutouts(tmp_path / "food")


def test_photographs_are_found_in_resource_files_and_too_few_are_refused(tmp_path):
    def webp(side):
        file = io.BytesIO()
        PIL.Image.new("RGB", (side, side), "teal").save(file, "webp")
        return file.getvalue()

    for name in cutouts.SCENES:
        (tmp_path / f"{name}.rcc").write_bytes(
            b"qres" + webp(320) + b"RIFF" + webp(40) + b"names" + webp(300)
        )
    assert [image.size[0] for image in cutouts.read_backgrounds(tmp_path)] == [320, 300, 320, 300]
    (tmp_path / "details.rcc").unlink()
    with pytest.raises(UserError, match="holds 2 photographs"):
        cutouts.read_backgrounds(tmp_path)
