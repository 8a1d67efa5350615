"""The drawn world: what it holds, what its splits keep apart, and that a change of one thing changes nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from tests.small import refused
from vlm_lite.lessons import world


def some_scenes(split, count=200):
    for index in range(count):
        yield world.sample_scene(np.random.default_rng([3, index]), split)


def test_held_out_pairs_are_in_every_novel_scene_and_in_no_other():
    def pairs(split):
        return [
            {(i.colour, i.shape) for i in scene.shapes} & world.HELD_OUT
            for scene in some_scenes(split)
        ]

    assert all(pairs("novel")) and not any(pairs("train")) and not any(pairs("val"))


def test_handwriting_of_val_is_never_seen_in_train():
    def glyphs(split):
        return {scene.digit.glyph for scene in some_scenes(split, 1500) if scene.digit}

    train, val = glyphs("train"), glyphs("val") | glyphs("novel")
    assert len(train) > 100 and len(val) > 100 and not train & val


def test_another_colour_changes_the_pixels_of_its_own_cell_alone():
    for seed, scene in enumerate(some_scenes("val", 40)):
        shapes = [i for i in scene.items if not i.is_digit]
        if not shapes:
            continue
        item = shapes[0]
        other = replace(item, colour="red" if item.colour != "red" else "blue")
        items = tuple(other if i is item else i for i in scene.items)
        one, two = (
            world.render(each, np.random.default_rng(seed)) for each in (scene, world.Scene(items))
        )
        rows, columns = np.nonzero((one != two).any(2))
        assert len(rows) > 30
        assert {*zip(rows // world.CELL, columns // world.CELL, strict=True)} == {
            (item.row, item.col)
        }


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"shape": "diamond"}, "shape is 'diamond'; .*circle, .*heart, digit"),
        ({"colour": "brown"}, "colour is 'brown'; .*star .*red, .*pink"),
        ({"row": 4}, "row is 4; .*0, 1, 2, 3"),
        ({"value": 3}, "value is 3; .*-1"),
        ({"shape": "digit", "value": 3}, "colour is 'red'; .*digit .*white"),
        ({"shape": "digit", "colour": "white"}, "value is -1; .*0, 1"),
    ],
)
def test_a_thing_that_is_not_in_this_world_is_refused(wrong, message):
    star = {"shape": "star", "colour": "red", "size": "large", "row": 0, "col": 0}
    with refused(message):
        world.Item(**{**star, **wrong})


def test_a_scene_is_one_to_four_things_in_cells_of_their_own():
    one, *more = (world.Item("star", "red", "large", row=k // 4, col=k % 4) for k in range(5))
    for wrong in (one, (), (one, *more), (one, one)):
        with refused("Scene"):
            world.Scene(wrong)
