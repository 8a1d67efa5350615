"""Four training sets of one world, and 19 rows of connectors by data at one budget.

Generated from notebooks/07c_which_data.py by `make notebooks`: edit the notebook.
"""

import numpy as np

from vlm_lite.encoded import encode_shapes
from vlm_lite.evals.captions import caption_scores
from vlm_lite.lessons import reading
from vlm_lite.lessons.fusion import fusion_row
from vlm_lite.lessons.instructions import as_pairs, ask_instructions, conversation, read_boxes
from vlm_lite.lessons.language import CAPTION_PROMPT, short_prompt
from vlm_lite.models.vlm import load_vlm


def reasoned(description, rng, count=2):
    """Up to `count` relations of a described scene, answered step by step: [(prompt, answer), ...]."""
    scene = read_boxes(description)
    drawn = (reading.in_steps(scene, rng) for _ in range(count))
    return list(dict.fromkeys(pair for pair in drawn if pair))


def data_sets(data, seed=0):
    """{name: N lists of (prompt, answer)} of an EncodedDataset: captions alone, and with three other kinds of text."""
    captions = [[(CAPTION_PROMPT, text) for text in five] for five in data.captions]
    rngs = [np.random.default_rng([seed, 7, k]) for k in range(len(captions))]
    described = list(zip(data.descriptions, rngs, strict=True))
    others = {
        "instructions": [as_pairs(conversation(text, rng, 5)) for text, rng in described],
        "VQA": [turns[1:] for turns in data.turns],
        "reasoning": [reasoned(text, rng) for text, rng in described],
    }
    mixed = {
        f"captions + {name}": [said[:2] + more for said, more in zip(captions, texts, strict=True)]
        for name, texts in others.items()
    }
    return {"captions": captions, **mixed}


def in_steps(model, data, limit=400):
    """The relations among the first `limit` questions, asked for an answer in steps -> scores 0 or 1, of its last word."""
    asked = data.questions.select(range(min(limit, len(data.questions)))).remove_columns("image")
    asked = asked.filter(lambda kind: kind == "relation", input_columns="question_type")
    prompts = [short_prompt(f"{question} {reading.STEPS}") for question in asked["question"][:]]
    said = model.generate(data.of(asked).float(), prompts, 48)
    last = [(text.rstrip(" .").split() or [""])[-1] for text in said]
    return np.array(
        [float(word == answer) for word, answer in zip(last, asked["answer"], strict=True)]
    )


def comparison_row(kind, parts, train, val, turns, *, seed=0, images=100, **recipe):
    """`fusion_row` on these turns, with what else the data may teach -> (model, History, ProbeResult, {metric: value})."""
    made = fusion_row(kind, parts, train, val, turns=turns, seed=seed, **recipe)
    model, *_, row = made
    said = model.generate(val.features[:images].float(), [CAPTION_PROMPT] * images, 48)
    texts = dict(enumerate(val.captions[:images])), dict(enumerate(said))
    row["CIDEr"] = caption_scores(*texts, metrics=("CIDEr",))["CIDEr"]
    row["instructions followed"] = 100 * np.mean(ask_instructions(model, val, images)[1])
    row["relation, in steps"] = 100 * in_steps(model, val).mean()
    return made


CLAIMED = "linear", "Q-Former", "resampler", "cross-attention"  # a claim names data for these
OTHERS = "MLP", "pixel shuffle + MLP", "visual expert"


def study(seed, profile):
    """Notebook 07c: four connectors on four kinds of data each, three more on captions + VQA, after the same 100 steps."""
    shipped, figures = load_vlm(profile.vlm_model), {}
    parts = shipped.vision, shipped.language_model, shipped.tokenizer
    train = encode_shapes(shipped.vision, "train", profile.train_images)
    val, sets = encode_shapes(shipped.vision, "val", profile.val_images), data_sets(train)
    recipe = {k: getattr(profile, f"connector_{k}") for k in ("batch_size", "per_row", "lr")}
    recipe["steps"] = min(100, profile.connector_steps)
    rows = [(kind, name) for kind in CLAIMED for name in sets]
    for kind, name in [*rows, *((kind, "captions + VQA") for kind in OTHERS)]:
        made = comparison_row(kind, parts, train, val, sets[name], seed=seed, **recipe)
        figures |= {f"{kind}, {name}: {metric}": value for metric, value in made[-1].items()}
    return made[1], figures
