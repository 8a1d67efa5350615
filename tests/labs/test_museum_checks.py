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


def strict_only(model, state):
    model.load_state_dict(state)
    return model


def replaced_everywhere(model, state):
    model.load_state_dict({name.replace("module.", ""): value for name, value in state.items()})
    return model


def stripped_but_lenient(model, state):
    model.load_state_dict(
        {name.removeprefix("module."): value for name, value in state.items()}, strict=False
    )
    return model


def always_cut(model, state):
    model.load_state_dict({name[7:]: value for name, value in state.items()})
    return model


def missing_only(model, state):
    found = model.load_state_dict(
        {name.removeprefix("module."): v for name, v in state.items()}, strict=False
    )
    if found.missing_keys:
        raise KeyError(found.missing_keys)
    return model


def returns_the_report(model, state):
    return model.load_state_dict(
        {name.removeprefix("module."): value for name, value in state.items()}
    )


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


RIGHT = [
    (check.position_ids, by_loop),
    (check.position_ids, padding_at_one),
    (check.load_weights, with_a_wrapper),
    (
        check.load_weights,
        lambda model, state: strict_only(
            model, {k.removeprefix("module."): state[k] for k in state}
        ),
    ),
    (check.split_by_image, split_with()),
    (check.split_by_image, split_by_hand),
]
WRONG = [
    (check.position_ids, broken("position_ids"), "padding is counted"),
    (check.position_ids, lambda mask: mask.cumsum(1), "take 1 off"),
    (check.position_ids, lambda mask: mask.cumsum(1) - 1, "place -1"),
    (check.position_ids, zeros_at_the_start, "*start* of a row"),
    (check.position_ids, lambda mask: (mask.cumsum(0) - 1).clamp(min=0), "down the batch"),
    (check.position_ids, row_by_mask, "padding is counted"),
    (check.position_ids, lambda mask: mask.flip(1).cumsum(1).flip(1) - 1, "from the right"),
    (check.position_ids, lambda mask: (mask.cumsum(1) - 1).clamp(min=0).float(), "whole numbers"),
    (
        check.position_ids,
        lambda mask: (mask.cumsum(1) - 1).masked_fill(mask == 0, 99),
        "beyond the table",
    ),
    (check.position_ids, lambda mask: by_loop(mask)[0], "shape (7,)"),
    (check.position_ids, lambda mask: by_loop(mask) * 2, "the places are"),
    (check.load_weights, broken("load_weights"), "not one weight arrived"),
    (check.load_weights, strict_only, "is refused"),
    (check.load_weights, replaced_everywhere, "front only"),
    (check.load_weights, stripped_but_lenient, "a name missing passes"),
    (check.load_weights, missing_only, "a name too many passes"),
    (check.load_weights, always_cut, "*without*"),
    (check.load_weights, returns_the_report, "return the model"),
    (check.split_by_image, broken("split"), "on both sides"),
    (check.split_by_image, split_with(by_row=True, drop=True), "rows are lost"),
    (check.split_by_image, split_with(shuffle=False), "every seed gives the same"),
    (check.split_by_image, split_with(seeded=False), "nobody can repeat"),
    (check.split_by_image, split_with(swap=True), "swapped"),
    (
        check.split_by_image,
        split_with(share=lambda ids, share: 0.5),
        "of 40 images are held out",
    ),
    (check.split_by_image, split_with(by_id=True), "not row numbers"),
    (
        check.split_by_image,
        lambda ids, share, seed: split_with()(ids, share, seed)[0],
        "two lists",
    ),
]
