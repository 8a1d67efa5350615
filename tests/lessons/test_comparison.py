"""Notebook 07c's training sets and what a row of its comparison measures."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from vlm_lite.lessons import comparison, language, reading
from vlm_lite.lessons.instructions import read_boxes
from vlm_lite.lessons.world import any_scene


@pytest.fixture(scope="module")
def data():
    """Forty images' texts, in the form of an EncodedDataset; each image's last question is a relation or none."""
    texts, captions, turns = [], [], []
    for k in range(40):
        rng = np.random.default_rng([3, k])
        scene = any_scene(rng)
        texts.append(reading.describe(scene))
        captions.append([f"caption {k} {which}" for which in range(5)])
        asked = [
            (language.short_prompt(q), answer) for q, answer, _ in language.questions(scene, rng)
        ]
        turns.append([(language.CAPTION_PROMPT, captions[-1][0]), *asked])
    return SimpleNamespace(captions=captions, descriptions=texts, turns=turns)


def test_the_sets_share_two_captions_and_differ_in_the_rest(data):
    sets = comparison.data_sets(data)
    assert list(sets)[0] == "captions" and len(sets) == 4
    for name, turns in sets.items():
        assert len(turns) == 40
        for k, said in enumerate(turns):
            whose = [answer for prompt, answer in said if prompt == language.CAPTION_PROMPT]
            assert whose == data.captions[k][: 5 if name == "captions" else 2]
    for k, said in enumerate(sets["captions + VQA"]):
        assert said[2:] == data.turns[k][1:]


def test_a_relation_is_answered_in_steps_of_its_own_scene(data):
    for text in data.descriptions:
        scene = read_boxes(text)
        said = comparison.reasoned(text, np.random.default_rng(0))
        assert len(said) <= 2 and (bool(said) == (len(scene.items) > 1))
        for prompt, answer in said:
            assert reading.STEPS in prompt and answer.split()[-1] in {"yes.", "no."}
    again = [comparison.reasoned(data.descriptions[0], np.random.default_rng(0)) for _ in range(2)]
    assert again[0] == again[1]


def test_relations_alone_are_asked_in_steps_and_the_last_word_counts():
    kinds, right = ["relation", "count", "relation", "relation"], ["yes", "2", "no", "no"]
    rows = {"question": list("abcd"), "answer": right, "question_type": kinds, "image": [0] * 4}
    questions, asked = datasets.Dataset.from_dict(rows), []

    def generate(features, prompts, words):
        asked.extend(prompts)
        return ["so the answer is yes.", "the answer is yes. so no", ""][: len(prompts)]

    found = SimpleNamespace(questions=questions, of=lambda rows: torch.zeros(len(rows), 1, 1))
    scores = comparison.in_steps(SimpleNamespace(generate=generate), found)
    assert scores.tolist() == [1.0, 1.0, 0.0]
    assert asked == [language.short_prompt(f"{which} {reading.STEPS}") for which in "acd"]
