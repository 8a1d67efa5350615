"""Notebook 06's checks: fixes in another style pass; the broken functions, half and wrong fixes are named.

An attempt is the right fix with an edit (what stands there, what instead), or a function.
"""

import re
from pathlib import Path

import jupytext
import torch
import torch.nn.functional as F

from vlm_lite.labs import check

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "06_bug_museum.py"


def broken(name):
    """The broken function of the notebook that goes with an exercise."""
    for cell in jupytext.read(NOTEBOOK).cells:
        if found := re.search(
            rf"^def broken_{name}\(.*?(?=^\S|\Z)", cell.source, flags=re.M | re.S
        ):
            names = {"F": F, "torch": torch}
            exec(found.group(), names)
            return names[f"broken_{name}"]
    raise AssertionError(f"the notebook has no broken_{name}")


PLACES, CUT = "(attention_mask.cumsum(dim=1) - 1).clamp(min=0)", 'name.removeprefix("module.")'
LOAD, SHUFFLE = "    model.load_state_dict(", "random.Random(seed).shuffle(images)"
ROWS = "rows = range(len(image_ids))"
RIGHT = {
    check.position_ids: [(".clamp(min=0)", ".masked_fill(attention_mask == 0, 1)")],
    check.load_weights: [(CUT, 'name[7 * name.startswith("module.") :]')],
    check.split_by_image: [(SHUFFLE, "random.Random(seed + 1).shuffle(images)")],
}
WRONG = {
    check.position_ids: {
        "padding is counted": broken("position_ids"),
        "take 1 off": (PLACES, "attention_mask.cumsum(dim=1)"),
        "place -1": (".clamp(min=0)", ""),
        "*start* of a row": (
            PLACES,
            "(torch.arange(attention_mask.shape[1]) - attention_mask.argmax(1, keepdim=True)).clamp(min=0)",
        ),
        "down the batch": ("dim=1", "dim=0"),
        "whatever its mask says": (
            PLACES,
            "torch.arange(attention_mask.shape[1]) * attention_mask",
        ),
        "from the right": (PLACES, "attention_mask.flip(1).cumsum(1).flip(1) - 1"),
        "whole numbers": (".clamp(min=0)", ".clamp(min=0).float()"),
        "beyond the table": (".clamp(min=0)", ".masked_fill(attention_mask == 0, 99)"),
        "shape (7,)": (".clamp(min=0)", ".clamp(min=0)[0]"),
        "the places are": (".clamp(min=0)", ".clamp(min=0) * 2"),
    },
    check.load_weights: {
        "not one weight arrived": broken("load_weights"),
        "is refused": (CUT, "name"),
        "front only": (CUT, 'name.replace("module.", "")'),
        "a name missing passes": ("items()})", "items()}, strict=False)"),
        "a name too many passes": (
            *(LOAD, "    found = model.load_state_dict(", "items()})", "items()}, strict=False)"),
            *(
                "    return",
                "    if found.missing_keys:\n        raise KeyError(found)\n    return",
            ),
        ),
        "*without*": (CUT, "name[7:]"),
        "return the model": (LOAD, "    return model.load_state_dict("),
    },
    check.split_by_image: {
        "on both sides": broken("split"),
        "rows are lost": (
            *(
                "sorted(set(image_ids))",
                "list(range(len(image_ids)))",
                ROWS,
                f"{ROWS}\n    test = held_out",
            ),
            "    return",
            "    seen = {image_ids[k] for k in test}\n"
            "    return [k for k in rows if image_ids[k] not in seen], sorted(test)\n    return",
        ),
        "every seed gives the same": (SHUFFLE, ""),
        "nobody can repeat": ("random.Random(seed)", "random"),
        "swapped": ("k] not in", "k] out", "k] in", "k] not in", "k] out", "k] in"),
        "of 40 images are held out": ("test_share *", "0.5 *"),
        "not row numbers": ("k for k in rows", "image_ids[k] for k in rows"),
        "two lists": (
            "    return",
            "    return [k for k in rows if image_ids[k] in held_out]\n    return",
        ),
    },
}
