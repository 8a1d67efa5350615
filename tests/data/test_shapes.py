"""The Shapes world: exact, reproducible, and read back by the readers of the real files."""

import collections
import hashlib
import json

import numpy as np
import pytest
from datasets import Dataset

from vlm_lite.data import formats, language, scenes, shapes
from vlm_lite.files import UserError


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


def test_the_files_have_the_official_fields(tmp_path):
    shapes.write_shapes(tmp_path / "w", "train", 20, progress=False)
    notes = tmp_path / "w/annotations"
    captions = json.loads((notes / "captions_shapes_train.json").read_text())
    assert set(captions) == {"info", "images", "annotations"}
    counts = collections.Counter(a["image_id"] for a in captions["annotations"])
    assert counts == {i["id"]: 5 for i in captions["images"]}
    answers = json.loads((notes / "v2_mscoco_shapes_train_annotations.json").read_text())[
        "annotations"
    ]
    assert all(
        len(a["answers"]) == 10 and a["answer_type"] in ("yes/no", "number", "other")
        for a in answers
    )


def test_questions_come_in_complementary_pairs_and_answers_are_balanced():
    _, questions = shapes.load_shapes("val", 64, progress=False)
    asked = collections.defaultdict(list)
    for row in zip(
        questions["question"][:], questions["image_id"][:], questions["answer"][:], strict=True
    ):
        asked[row[0]].append(row[1:])
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


def test_every_answer_is_true_of_its_scene():
    """Worked out again from the items, not from the code that asked."""
    for scene, rng in some_scenes("train", 150):
        for question, answer, kind in language.questions(scene, rng):
            words = question.rstrip("?").split()
            if kind == "count":
                noun = words[2]

                def fits(i, noun=noun):
                    return noun in ("shapes", i.shape + "s", i.shape + "es", i.colour, i.size)

                assert answer == str(sum(fits(i) for i in scene.shapes)), (question, scene)
            if kind == "existence" and "digit" not in words:
                wanted = set(words) & {*scenes.SHAPES, *scenes.COLOURS}
                found = any(wanted <= {i.shape, i.colour} for i in scene.shapes)
                assert answer == ("yes" if found else "no"), (question, scene)
            if kind == "colour":
                wanted = set(words) & {*scenes.SHAPES, *scenes.SIZES}
                assert [i.colour for i in scene.shapes if wanted <= {i.shape, i.size}] == [
                    answer
                ], (question, scene)
            if kind == "relation":
                relation = next(r for r in language.PAIRS if f" {r} " in question)
                one, other = (thing(part, scene) for part in question[3:-1].split(f" {relation} "))
                axis = {
                    "left of": one.col < other.col,
                    "right of": one.col > other.col,
                    "above": one.row < other.row,
                    "below": one.row > other.row,
                }
                assert answer == ("yes" if axis[relation] else "no"), (question, scene)


def thing(phrase, scene):
    wanted = set(phrase.split()) - {"the", "shape"}
    found = [
        i
        for i in scene.items
        if wanted <= ({"digit"} if i.is_digit else {i.shape, i.colour, i.size})
    ]
    assert len(found) == 1, (phrase, scene)
    return found[0]


def test_descriptions_name_everything_in_every_wording():
    for scene, rng in some_scenes("train", 100):
        for text in (language.describe(scene), language.describe(scene, rng)):
            for item in scene.items:
                wanted = (
                    [str(item.value)] if item.is_digit else [item.shape, item.colour, item.size]
                )
                assert all(word in text for word in [*wanted, language.ROWS[item.row]]), (
                    text,
                    item,
                )


def test_the_first_caption_tells_all_but_the_cell_and_the_ceiling_knows_what_that_leaves_open():
    ceiling = shapes.ambiguity_ceiling(["a b and a c.", "a c and a b.", "a d."], ks=(1, 2))
    assert ceiling == {1: pytest.approx(2 / 3), 2: 1}
    texts = [language.captions(scene, rng)[0] for scene, rng in some_scenes("val")]
    assert 0.95 < shapes.ambiguity_ceiling(texts)[1] <= 1


def test_sentences_read_like_sentences():
    said = {
        language.sentence(*q)
        for scene, rng in some_scenes("train", 60)
        for q in language.questions(scene, rng)
    }
    assert {"there is 1 triangle.", "there are no circles.", "there is 1 cross."} <= said
    assert all(s.endswith(".") and "  " not in s for s in said)
    assert any(s.startswith("no, there is no ") for s in said) and any(
        s.startswith("yes, there is a") for s in said
    )


def test_no_text_of_the_world_has_a_word_the_tokenizer_does_not_know():
    tokenizer = language.make_tokenizer()
    for index in range(150):
        rng = np.random.default_rng([4, index])
        description, exchanges = language.document(scenes.sample_scene, rng)
        text = " ".join([description, *(f"{p} {a}" for p, a in exchanges)])
        assert not language.unknown_words(tokenizer, text), text


def test_an_unknown_word_is_reported_and_option_letters_differ_from_the_article():
    tokenizer = language.make_tokenizer()
    assert language.unknown_words(tokenizer, "What colour is the Zeppelin?") == ["Zeppelin"]
    ids = tokenizer("a A. B.", add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == 3 and tokenizer.unk_token_id not in ids
    assert tokenizer.eos_token_id == 5 and tokenizer.pad_token_id == 0


def test_a_cut_drawing_is_not_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    real, calls = scenes.render, []

    def stop(scene, rng):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(scene, rng)

    monkeypatch.setattr(scenes, "render", stop)
    with pytest.raises(KeyboardInterrupt):
        shapes.load_shapes("val", 8, progress=False)
    assert not list(tmp_path.rglob("*.png")), "nothing half-written is left"
    monkeypatch.setattr(scenes, "render", real)
    assert len(shapes.load_shapes("val", 8, progress=False)[0]) == 8


def test_bad_settings_are_refused_with_what_there_is():
    with pytest.raises(UserError, match="train, val, novel"):
        shapes.load_shapes("test")
    shapes.load_shapes("val", 8, progress=False)
    for count in (1, "10", "8", 8.0, None):  # 8 are drawn already
        with pytest.raises(
            UserError, match=f"count is {count!r}; expected a whole number, at least 2"
        ):
            shapes.load_shapes("val", count)


def test_the_scoreboard_has_the_rarest_answer_of_each_type_and_yes_where_two_are_equally_rare():
    rows = [
        ("relation", "no"),
        ("relation", "yes"),
        ("relation", "yes"),
        ("relation", "no"),
        ("digit", "7"),
        ("digit", "3"),
        ("digit", "7"),
        ("colour", "red"),
        ("shape", "star"),
        ("count", "2"),
        ("size", "small"),
    ]
    for order in (rows, rows[1:]):  # in the second, "no" is the rarer one
        kinds, answers = map(list, zip(*order, strict=True))
        table = Dataset.from_dict(
            {"question_type": kinds, "answer": answers, "row": list(range(len(order)))}
        )
        five = shapes.five_questions(table)
        assert [row["question_type"] for row in five] == list(shapes.SCOREBOARD_TYPES)
        assert [row["answer"] for row in five] == [
            "red",
            "star",
            "2",
            "yes" if order is rows else "no",
            "3",
        ]
        assert five[3]["row"] == order.index(("relation", five[3]["answer"])), (
            "the first of its kind"
        )


@pytest.mark.parametrize("count", [32, 64])
def test_the_shipped_model_asked_blind_answers_no_question_of_the_scoreboard(count):
    from vlm_lite.models.vlm import VLM
    from vlm_lite.profiles import resolve_model

    five = shapes.five_questions(shapes.load_shapes("val", count, progress=False)[1])
    said = VLM.from_pretrained(resolve_model("shapes-vlm")).generate(
        None, [language.short_prompt(row["question"]) for row in five]
    )
    assert [
        row["question"] for row, text in zip(five, said, strict=True) if text == row["answer"]
    ] == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": "diamond"}, "shape is 'diamond'; choose circle, .*, heart, digit"),
        ({"colour": "brown"}, "colour is 'brown'; for a star choose red, .*pink"),
        ({"size": "big"}, "size is 'big'; for a star choose small, large"),
        ({"row": 4}, "row is 4; for a star choose 0, 1, 2, 3"),
        ({"col": -1}, "col is -1"),
        ({"value": 3}, "value is 3; for a star choose -1"),
        ({"shape": "digit", "value": 3}, "colour is 'red'; for a digit choose white"),
        ({"shape": "digit", "colour": "white"}, "value is -1; for a digit choose 0, 1"),
    ],
)
def test_a_thing_that_is_not_in_this_world_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        scenes.Item(
            **{"shape": "star", "colour": "red", "size": "large", "row": 0, "col": 0, **wrong}
        )


def test_a_scene_is_one_to_four_things_in_cells_of_their_own():
    things = [scenes.Item("star", "red", "large", row=k // 4, col=k % 4) for k in range(5)]
    for wrong, message in (
        (things[0], r"tuple.*comma: Scene\(\(Item"),
        ((), "0 items"),
        (tuple(things), "5 items"),
        ((things[0], things[0]), "two items in row 0, col 0"),
    ):
        with pytest.raises(UserError, match=message):
            scenes.Scene(wrong)


def test_a_drawn_digit_without_a_handwriting_gets_an_unseen_one_of_its_value():
    _, targets, pools = scenes._digits()
    for value in range(10):
        item = scenes.Item("digit", "white", "large", row=1, col=2, value=value)
        glyph = scenes._glyph(item)
        assert targets[glyph] == value and glyph in pools["test"]
    scenes.render(scenes.Scene((item,)), np.random.default_rng(0))
