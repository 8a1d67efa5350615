"""Notebook 06's checks: fixed functions of several styles pass; the broken ones, half and wrong fixes are named."""

import random
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


# ---- position_ids


def by_loop(mask):
    places = torch.zeros_like(mask)
    for row, place in zip(mask, places, strict=True):
        place[row == 1] = torch.arange(int(row.sum()))
    return places


def padding_at_one(mask):
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)


def zeros_at_the_start(mask):
    return (torch.arange(mask.shape[1]) - mask.argmax(1, keepdim=True)).clamp(min=0)


def row_by_mask(mask):
    return torch.arange(mask.shape[1]) * mask


# ---- load_weights


def with_a_wrapper(model, state):
    if all(name.startswith("module.") for name in state):
        state = {name[len("module.") :]: value for name, value in state.items()}
    result = model.load_state_dict(state, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise ValueError(str(result))
    return model


def loads(
    rename=lambda name: name.removeprefix("module."), strict=True, raises=(), gives_report=False
):
    """`load_weights` in one line, with one thing done in another way."""

    def load(model, state):
        state = {rename(name): value for name, value in state.items()}
        report = model.load_state_dict(state, strict=strict)
        if any(getattr(report, kind) for kind in raises):
            raise KeyError(report)
        return report if gives_report else model

    return load


# ---- split_by_image


def split_with(
    shuffle=True,
    share=lambda ids, share: share,
    seeded=True,
    drop=False,
    by_row=False,
    swap=False,
    by_id=False,
):
    def split(image_ids, test_share, seed):
        images = sorted(set(image_ids))
        if shuffle:
            (random.Random(seed) if seeded else random).shuffle(images)
        held = set(images[: round(share(image_ids, test_share) * len(images))])
        train = [k for k, i in enumerate(image_ids) if i not in held]
        test = [k for k, i in enumerate(image_ids) if i in held]
        if by_row:
            rows = list(range(len(image_ids)))
            random.Random(seed).shuffle(rows)
            test, train = (
                rows[: round(test_share * len(rows))],
                rows[round(test_share * len(rows)) :],
            )
        if drop:  # what leaks is thrown out of the training rows
            train = [k for k in train if image_ids[k] not in {image_ids[j] for j in test}]
        if by_id:
            train, test = [image_ids[k] for k in train], [image_ids[k] for k in test]
        return (test, train) if swap else (train, test)

    return split


def split_by_hand(image_ids, test_share, seed):
    images = torch.tensor(sorted(set(image_ids)))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    is_test = torch.isin(torch.tensor(image_ids), images[order[: round(test_share * len(images))]])
    return (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]


RIGHT = {
    check.position_ids: [by_loop, padding_at_one],
    check.load_weights: [
        with_a_wrapper,
        loads(),
    ],
    check.split_by_image: [split_with(), split_by_hand],
}
WRONG = {
    check.position_ids: {
        "padding is counted": broken("position_ids"),
        "take 1 off": lambda mask: mask.cumsum(1),
        "place -1": lambda mask: mask.cumsum(1) - 1,
        "*start* of a row": zeros_at_the_start,
        "down the batch": lambda mask: (mask.cumsum(0) - 1).clamp(min=0),
        "whatever its mask says": row_by_mask,
        "from the right": lambda mask: mask.flip(1).cumsum(1).flip(1) - 1,
        "whole numbers": lambda mask: (mask.cumsum(1) - 1).clamp(min=0).float(),
        "beyond the table": lambda mask: (mask.cumsum(1) - 1).masked_fill(mask == 0, 99),
        "shape (7,)": lambda mask: by_loop(mask)[0],
        "the places are": lambda mask: by_loop(mask) * 2,
    },
    check.load_weights: {
        "not one weight arrived": broken("load_weights"),
        "is refused": loads(str),
        "front only": loads(lambda name: name.replace("module.", "")),
        "a name missing passes": loads(strict=False),
        "a name too many passes": loads(strict=False, raises=["missing_keys"]),
        "*without*": loads(lambda name: name[7:]),
        "return the model": loads(gives_report=True),
    },
    check.split_by_image: {
        "on both sides": broken("split"),
        "rows are lost": split_with(by_row=True, drop=True),
        "every seed gives the same": split_with(shuffle=False),
        "nobody can repeat": split_with(seeded=False),
        "swapped": split_with(swap=True),
        "of 40 images are held out": split_with(share=lambda ids, share: 0.5),
        "not row numbers": split_with(by_id=True),
        "two lists": lambda ids, share, seed: split_with()(ids, share, seed)[0],
    },
}
