"""Instruction data made from words: what a scene says comes back, and a reply is judged by its form and its facts."""

import json

import numpy as np
import pytest

from tests.small import refused
from vlm_lite.data.readers import read_llava
from vlm_lite.data.tokenizer import make_tokenizer, unknown_words
from vlm_lite.lessons import instructions, language, reading, shipped, world

TEXT = "a small red circle in the top row, left column. a handwritten 5 in the bottom row, right column."


def scene_of(seed):
    return world.sample_scene(np.random.default_rng(seed))


def test_boxes_read_from_a_description_are_the_scene_that_was_described():
    for seed in range(50):
        text = reading.describe(scene_of(seed))
        assert reading.describe(instructions.read_boxes(text)) == text
    for bad in (
        "",
        "a small red circle.",
        "a small red circle in the top row, left column. and more",
    ):
        with refused("no description of a Shapes scene"):
            instructions.read_boxes(bad)


def test_every_instruction_is_in_the_vocabulary_and_its_own_reply_follows_it():
    tokenizer, seen = make_tokenizer(), set()
    for seed in range(100):
        for ask, reply, form in instructions.turns(scene_of(seed), np.random.default_rng(seed)):
            assert not unknown_words(tokenizer, f"{ask} {reply}")
            decoded = tokenizer.decode(
                tokenizer(reply)["input_ids"]
            )  # with the tokenizer's own spaces
            assert instructions.follows(decoded, reply, form) == 1
            seen.add(form)
    assert seen == set(instructions.FORMS)


# a reply, the form asked for, whether it has that form, whether it also says what was to be said
REPLIES = """
red | word | 1 | 0
blue. | word | 1 | 1
the star is blue. | word | 0 | 0
the star is blue. | sentence | 1 | 1
blue | sentence | 0 | 0
the star is red. | sentence | 1 | 0
red circle, blue star | list | 1 | 0
a star. a circle. | list | 0 | 0
there is a star. there is a circle. | detail | 1 | 0
star, circle | detail | 0 | 0
2: a star and a circle. | reason | 1 | 0
two stars. | reason | 0 | 0
"""


@pytest.mark.parametrize("row", REPLIES.strip().splitlines())
def test_form_and_facts_are_told_apart(row):
    reply, form, has_form, follows = row.split(" | ")
    expected = {"word": "blue", "sentence": "the star is blue."}.get(form, "there is a cross.")
    assert instructions.has_form(reply, form) == bool(int(has_form))
    assert instructions.follows(reply, expected, form) == int(follows)


def test_facts_ignore_wording_and_number_but_count():
    assert instructions.facts("A red star, and 2 red stars.") == {"red": 2, "star": 2, "2": 1}
    assert instructions.facts("two crosses") == {"cross": 1}


def test_a_conversation_has_the_common_format_and_becomes_pairs():
    text = reading.describe(scene_of(3))
    messages = instructions.conversation(text, np.random.default_rng(0))
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3
    pairs = instructions.as_pairs(messages)
    assert pairs[1] == (f"<user> {messages[2]['content']} <assistant>", messages[3]["content"])
    for bad in ([], messages[1:], messages[:3]):
        with refused("user and assistant in turn"):
            instructions.as_pairs(bad)


def test_a_record_of_llava_instruct_is_read_back_as_the_conversation(tmp_path):
    from PIL import Image

    messages = instructions.conversation(TEXT, np.random.default_rng(0))
    record = json.loads(instructions.llava_record(7, messages))
    assert record["conversations"][0]["value"].startswith("<image>\n")
    (tmp_path / "notes.json").write_text(json.dumps([record]))
    Image.new("RGB", (8, 8)).save(tmp_path / "7.png")
    assert read_llava(tmp_path / "notes.json", tmp_path)["conversation"][0] == messages


def test_concreteness_is_of_its_own_image_and_of_another():
    said = ["a red circle and a handwritten 5.", "i see a blue star."]
    own, other = instructions.concreteness(
        said, [TEXT, "a large blue star in the top row, left column."]
    )
    assert own.tolist() == [1, 1] and other.tolist() == [0, 0]
    assert instructions.concreteness(["a red circle."], [TEXT])[0].tolist() == [0.5]


@pytest.mark.parametrize(
    "prompt, right, wrong",
    [
        ("caption:", "there is a small red circle in the top left.", "a small blue circle."),
        (
            "<user> describe the picture in detail. <assistant>",
            "there is a small red circle in the top left. there is a handwritten 5 in the bottom right.",
            "there is a small red circle in the top left.",
        ),
        ("<user> list the things in the picture. <assistant>", "red circle, handwritten 5", "5"),
        ("<user> how many shapes are there? <assistant>", "there is 1 shape.", "there are 2."),
        (language.short_prompt("how many shapes are there?"), "1", "there is 1 shape."),
        (instructions.brief_prompt("is there a digit?"), "yes", "yes, there is a digit."),
    ],
)
def test_a_fixed_prompt_is_right_with_the_facts_and_the_form_asked_for(prompt, right, wrong):
    captions = [
        "a small red circle in the top left and a handwritten 5.",
        "small red circle, top left",
    ]
    truth, is_right = shipped.truth_of(prompt, TEXT, captions)
    assert is_right(right) and is_right(truth) and not is_right(wrong) and not is_right("")


def test_texts_to_read_are_the_same_every_time_and_in_the_vocabulary():
    tokenizer, rows = make_tokenizer(), instructions.reading_rows(5)
    assert rows == instructions.reading_rows(5)
    assert all(not unknown_words(tokenizer, " ".join(turn)) for row in rows for turn in row)
    assert any(row[0][0].count(".") > 1 for row in rows)  # a scene before the first prompt
