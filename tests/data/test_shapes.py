"""The Shapes world: exact, reproducible, and read back by the readers of the real files."""

import collections
import hashlib

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.small import refused
from vlm_lite.data import formats, shapes
from vlm_lite.lessons import language, world
from vlm_lite.lessons.clip import recall_at_k


def some_scenes(split, count=200):
    for index in range(count):
        rng = np.random.default_rng([3, index])
        yield world.sample_scene(rng, split), rng


def test_the_same_seed_draws_the_same_pixels_and_writes_the_same_json(tmp_path):
    """Recorded on x86-64 with numpy 2.4. Another figure here means that every recorded study is about another world."""
    shapes.write_shapes(tmp_path / "a", "val", 12, seed=5, progress=False)
    captions = formats.read_coco_captions(
        tmp_path / "a/annotations/captions_shapes_val.json", tmp_path / "a/images/shapes_val"
    )
    pixels, _ = formats.image_tensor(captions)
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16] == PIXELS
    notes = sorted((tmp_path / "a/annotations").iterdir())
    assert hashlib.sha256(b"".join(p.read_bytes() for p in notes)).hexdigest()[:16] == NOTES


PIXELS, NOTES = "39746606edc429cd", "27f8a1fb1d6f2f34"


def test_questions_come_in_complementary_pairs_and_answers_are_balanced():
    _, questions = shapes.load_shapes("val", 64, progress=False)
    asked = collections.defaultdict(list)
    columns = (questions[name][:] for name in ("question", "image_id", "answer"))
    for text, *row in zip(*columns, strict=True):
        asked[text].append(row)
    assert all(len(rows) % 2 == 0 and len({a for _, a in rows}) > 1 for rows in asked.values())
    kinds, answers = questions["question_type"][:], questions["answer"][:]
    assert set(kinds) == set(shapes.ANSWERS)
    for kind in ("existence", "relation", "size"):
        given = collections.Counter(a for a, k in zip(answers, kinds, strict=True) if k == kind)
        assert len(given) == 2 and len(set(given.values())) == 1, (kind, given)


def test_the_ceiling_is_the_recall_of_a_model_that_errs_only_between_equal_captions():
    texts = ["a b.", "a b.", "a c.", *(str(k) for k in range(7))]
    perfect = torch.tensor([[float(a == b) for b in texts] for a in texts])
    limits = shapes.recall_limits(texts, ks=(1, 2))
    assert limits["chance"] == {"R@1": 0.1, "R@2": 0.2}
    assert limits["ceiling"] == {f"R@{k}": pytest.approx(recall_at_k(perfect, k)) for k in (1, 2)}
    assert limits["ceiling"]["R@1"] == 0.8
    texts = [language.captions(scene, rng)[0] for scene, rng in some_scenes("val")]
    assert 0.95 < shapes.recall_limits(texts)["ceiling"]["R@1"] < 1


def test_bad_settings_are_refused_with_what_there_is():
    with refused("train, val, novel"):
        shapes.load_shapes("test")
    shapes.load_shapes("val", 8, progress=False)
    for count in (1, "10", "8", 8.0, None):  # 8 are drawn already
        with refused(f"count is {count!r}"):
            shapes.load_shapes("val", count)


def test_the_scoreboard_has_the_rarest_answer_of_each_type_and_yes_where_two_are_equally_rare():
    rows = """relation no, relation yes, relation yes, relation no, digit 7, digit 3, digit 7, colour red,
        shape star, count 2, size small"""
    rows = [tuple(row.split()) for row in rows.split(",")]
    for order, word in ((rows, "yes"), (rows[1:], "no")):  # in the second, "no" is the rarer one
        table = Dataset.from_list(
            [{"question_type": k, "answer": a, "row": n} for n, (k, a) in enumerate(order)]
        )
        five = shapes.five_questions(table)
        assert [row["question_type"] for row in five] == list(shapes.SCOREBOARD_TYPES)
        assert [row["answer"] for row in five] == ["red", "star", "2", word, "3"]
        assert five[3]["row"] == order.index(("relation", word))  # the first of its kind
