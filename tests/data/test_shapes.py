"""The Shapes world: exact, reproducible, and read back by the readers of the real files."""

import collections
import hashlib

import numpy as np
import pytest
from datasets import Dataset

from tests.small import refused
from vlm_lite.data import formats, language, shapes
from vlm_lite.lessons import reading, scenes


def some_scenes(split, count=200):
    for index in range(count):
        rng = np.random.default_rng([3, index])
        yield scenes.sample_scene(rng, split), rng


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


def test_held_out_pairs_are_in_every_novel_scene_and_in_no_other():
    def pairs(split):
        return [
            {(i.colour, i.shape) for i in scene.shapes} & scenes.HELD_OUT
            for scene, _ in some_scenes(split)
        ]

    assert all(pairs("novel")) and not any(pairs("train")) and not any(pairs("val"))


def test_handwriting_of_val_is_never_seen_in_train():
    def glyphs(split):
        return {scene.digit.glyph for scene, _ in some_scenes(split, 1500) if scene.digit}

    train, val = glyphs("train"), glyphs("val") | glyphs("novel")
    assert len(train) > 100 and len(val) > 100 and not train & val


def words_of(item):
    return {"digit"} if item.is_digit else {item.shape, item.colour, item.size}


def thing(phrase, scene):
    wanted = set(phrase.split()) - {"the", "shape"}
    (found,) = (i for i in scene.items if wanted <= words_of(i))
    return found


def truth(question, kind, scene):
    """The answer, worked out again from the items; None for what is not asked for here."""
    words = question.rstrip("?").split()
    told = set(words) & {*scenes.SHAPES, *scenes.COLOURS, *scenes.SIZES}
    if kind == "count":
        noun = {words[2], words[2].removesuffix("s"), words[2].removesuffix("es")}
        return str(sum(words[2] == "shapes" or bool(noun & words_of(i)) for i in scene.shapes))
    if kind == "existence" and "digit" not in words:
        return "yes" if any(told <= words_of(i) for i in scene.shapes) else "no"
    if kind == "colour":
        return " ".join(i.colour for i in scene.shapes if told <= words_of(i))
    if kind == "relation":
        relation = next(r for r in language.PAIRS if f" {r} " in question)
        one, other = (thing(part, scene) for part in question[3:-1].split(f" {relation} "))
        axis = {
            "left of": one.col < other.col,
            "right of": one.col > other.col,
            "above": one.row < other.row,
            "below": one.row > other.row,
        }
        return "yes" if axis[relation] else "no"


def test_every_answer_is_true_of_its_scene():
    for scene, rng in some_scenes("train", 150):
        for question, answer, kind in language.questions(scene, rng):
            assert truth(question, kind, scene) in (answer, None), (question, scene)


def test_descriptions_name_everything_in_every_wording():
    for scene, rng in some_scenes("train", 100):
        for text in (language.describe(scene), language.describe(scene, rng)):
            for item in scene.items:
                wanted = {str(item.value)} if item.is_digit else words_of(item)
                assert all(word in text for word in (*wanted, language.ROWS[item.row])), text


def test_the_first_caption_tells_all_but_the_cell_and_the_ceiling_knows_what_that_leaves_open():
    limits = shapes.recall_limits(["a b and a c.", "a c and a b.", "a d."], ks=(1, 2))
    assert limits["ceiling"] == {"R@1": pytest.approx(2 / 3), "R@2": 1}
    texts = [language.captions(scene, rng)[0] for scene, rng in some_scenes("val")]
    assert 0.95 < shapes.recall_limits(texts)["ceiling"]["R@1"] <= 1


def test_no_text_of_the_world_has_a_word_the_tokenizer_does_not_know():
    tokenizer = language.make_tokenizer()
    for index in range(150):
        rng = np.random.default_rng([4, index])
        description, exchanges = reading.document(scenes.sample_scene, rng)
        text = " ".join([description, *(f"{p} {a}" for p, a in exchanges)])
        assert not language.unknown_words(tokenizer, text), text


def test_an_unknown_word_is_reported_and_option_letters_differ_from_the_article():
    tokenizer = language.make_tokenizer()
    assert language.unknown_words(tokenizer, "What colour is the Zeppelin?") == ["Zeppelin"]
    ids = tokenizer("a A. B.", add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == 3 and tokenizer.unk_token_id not in ids
    assert tokenizer.eos_token_id == 5 and tokenizer.pad_token_id == 0


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
        scenes.Item(**{**star, **wrong})


def test_a_scene_is_one_to_four_things_in_cells_of_their_own():
    one, *more = (scenes.Item("star", "red", "large", row=k // 4, col=k % 4) for k in range(5))
    for wrong in (one, (), (one, *more), (one, one)):
        with refused("Scene"):
            scenes.Scene(wrong)
