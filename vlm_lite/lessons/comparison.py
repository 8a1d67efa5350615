"""Four designs trained on four kinds of data, and seven side by side.

Generated from notebooks/07c_which_data.py by `make notebooks`: edit the notebook.
"""

import numpy as np

from vlm_lite.data import instructions
from vlm_lite.data.language import CAPTION_PROMPT, chat_prompt
from vlm_lite.evals.captions import caption_scores
from vlm_lite.lessons.first_stage import frozen_parts, vqa_metrics
from vlm_lite.lessons.fusion import fusion_row

PAIRED = {
    "linear": "captions + instructions",
    "Q-Former": "captions + VQA",
    "resampler": "captions + reasoning",
    "cross-attention": "captions + VQA",
}
OTHERS = "MLP", "pixel shuffle + MLP", "visual expert"
DATA = "captions", "captions + instructions", "captions + VQA", "captions + reasoning"


def data_turns(data, kind, seed=0):
    """N lists of (prompt, answer) of an EncodedDataset, half of them captions. kind: one of DATA."""
    rows = []
    for k, (captions, description) in enumerate(zip(data.captions, data.descriptions, strict=True)):
        told, rng = [(CAPTION_PROMPT, text) for text in captions], np.random.default_rng([seed, k])
        scene = instructions.read_boxes(description)
        drawn = [turn for _ in range(3) for turn in instructions.turns(scene, rng)]
        forms = {"sentence", "list", "detail"} if "instructions" in kind else {"reason"}
        more = [(chat_prompt(ask), reply) for ask, reply, form in drawn if form in forms]
        more = {"captions": [], "captions + VQA": data.turns[k][1:]}.get(kind, more)
        rows.append(told[: len(more)] + more[: len(told)] if more else told)
    return rows


def row_of(kind, data, parts, profile, seed=0, **changes):
    """One design trained on one kind of data -> (model, History, {metric: value}): VQA beside its controls, CIDEr, cost."""
    *parts, train, val = parts
    recipe = {
        k: getattr(profile, f"connector_{k}") for k in ("steps", "batch_size", "per_row", "lr")
    }
    turns = data_turns(train, data, seed)
    made = fusion_row(kind, parts, train, val, turns=turns, seed=seed, **recipe | changes)
    model, history, result, row = made
    count = min(100, len(val.ids))
    said = model.generate(val.features[:count].float(), [CAPTION_PROMPT] * count, 48)
    texts = dict(enumerate(val.captions[:count])), dict(enumerate(said))
    found = vqa_metrics(result) | {"CIDEr": caption_scores(*texts, metrics=("CIDEr",))["CIDEr"]}
    return (
        model,
        history,
        found
        | {name: row[name] for name in ("million parameters", "tokens an image", "seconds a step")},
    )


def study(seed, profile):
    """Notebook 07c's rows: four designs on four kinds of data, three more on captions + VQA, after the same 120 steps."""
    parts, figures = frozen_parts(profile, profile.train_images), {}
    for kind in (*PAIRED, *OTHERS):
        for data in DATA if kind in PAIRED else [PAIRED["Q-Former"]]:
            steps = min(120, profile.connector_steps)
            _, history, found = row_of(kind, data, parts, profile, seed, steps=steps)
            figures |= {f"{kind}; {data}; {name}": value for name, value in found.items()}
    return history, figures
