"""The checks of notebook 06: functions with a silent bug, which the learner hands back fixed.

Each check first sees whether the fixed function is right on fresh inputs; if not, whether what it did is what a known
half-fixed or wrongly fixed version would do. Shapes: B rows, T tokens, Q prefix vectors, D width, V vocabulary.
"""

import random

import torch
from torch import nn

from vlm_lite.labs.core import exercise, shape_problem

# ---- the references


def _position_ids(attention_mask):
    """attention_mask (B, T), zeros anywhere -> (B, T): the n-th real vector of a row has place n - 1."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def _load_weights(model, state):
    """Copy `state` into `model`, with or without "module." before all its names -> model. Errors where one is amiss."""
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model


def _split_by_image(image_ids, test_share, seed):
    """The image of each row, a share, a seed -> (train, test), lists of row numbers; no image is in both."""
    images = sorted(set(image_ids))
    random.Random(seed).shuffle(images)
    held_out = set(images[: round(test_share * len(images))])
    rows = range(len(image_ids))
    return [k for k in rows if image_ids[k] not in held_out], [
        k for k in rows if image_ids[k] in held_out
    ]


# ---- the checks


@exercise(_position_ids)
def position_ids(learner):
    """Padding on the right, on the left, between a prefix and its text, and none."""
    mask = torch.tensor(
        [
            [1, 1, 1, 1, 1, 0, 0],
            [0, 0, 0, 1, 1, 1, 1],
            [1, 1, 0, 0, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1],
            [1, 0, 0, 0, 0, 1, 1],
        ]
    )[torch.randperm(5)]
    right, own = _position_ids(mask), mask.bool()
    found = learner(mask.clone())
    if problem := shape_problem(found, mask.shape, "the positions"):
        return problem
    if found.is_floating_point() or found.dtype == torch.bool:
        return f"your positions are {found.dtype}; they are looked up in a table, so they must be whole numbers"
    if torch.equal(found[own], right[own]):
        if found.min() < 0:
            return (
                "padding gets the place -1, and there is no row -1 in a table of positions: any place will do for "
                "padding, but it must exist (clamp(min=0))"
            )
        return (
            "padding gets a place beyond the table: keep below T"
            if found.max() >= mask.shape[1]
            else None
        )
    places = torch.arange(mask.shape[1]).expand_as(mask)
    after_zeros = places - (mask.cumsum(dim=1) == 0).sum(
        dim=1, keepdim=True
    )  # counts only the zeros at the start
    known = {
        "every row gets 0, 1, 2, ... whatever its mask says: padding is counted, so a row padded on the left starts at "
        "a later place": places,
        "your places start at 1; they are counted from 0: take 1 off": mask.cumsum(dim=1),
        "only the padding at the *start* of a row is taken off; in a VLM it stands between prefix and text: count the "
        "ones, with cumsum": after_zeros,
        "you count down the batch; each *row* is a sequence: cumsum(dim=1)": mask.cumsum(dim=0) - 1,
        "you count the ones from the right": mask.flip(1).cumsum(dim=1).flip(1) - 1,
    }
    for said, wrong in known.items():
        if torch.equal(found[own], wrong[own]):
            return said
    row = int((found != right).logical_and(own).any(dim=1).nonzero()[0])
    return f"for the mask {mask[row].tolist()} the places are {right[row].tolist()}, not {found[row].tolist()}"


class _Net(nn.Module):
    """A model whose names hold "module." in the middle too."""

    def __init__(self):
        super().__init__()
        self.encoder, self.fusion_module, self.norm = (
            nn.Linear(3, 4),
            nn.Linear(4, 4),
            nn.LayerNorm(4),
        )
        self.towers = nn.ModuleDict({"module": nn.Linear(4, 2)})


@exercise(_load_weights)
def load_weights(learner):
    """Names with and without "module."; then a state with a name missing, one with a name too many, a foreign one."""
    state = _Net().state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}

    def attempt(given):
        """(how many tensors arrived, error or None, what came back)"""
        model = _Net()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(-7.0)
        try:
            result = learner(model, dict(given))
        except NotImplementedError:  # a RuntimeError too, but here an empty exercise
            raise
        except (RuntimeError, ValueError, AssertionError, LookupError) as error:
            return 0, error, None
        return (
            sum(torch.equal(value, state[name]) for name, value in model.state_dict().items()),
            None,
            result,
        )

    arrived, error, result = attempt(wrapped)
    if (
        error is not None
        and any(".module." in name or "fusion_" in name for name in str(error).split())
        and ("fusion_weight" in str(error) or "towers.weight" in str(error))
    ):
        return (
            '"module." is taken out of the middle of names as well ("fusion_module.weight"): take it off the '
            "front only, with removeprefix"
        )
    if error is not None:
        return (
            'a whole checkpoint whose names all begin with "module." (a model saved from DistributedDataParallel) '
            f"is refused: take the prefix off. {type(error).__name__}: {str(error).splitlines()[0]}"
        )
    if arrived == 0:
        return (
            'not one weight arrived, and nothing was said: the names begin with "module.", and strict=False lets '
            "that pass"
        )
    if arrived < len(state):
        return f"only {arrived} of {len(state)} tensors arrived, and nothing was said"
    if not isinstance(result, nn.Module):
        return f"return the model; you returned a {type(result).__name__}"
    arrived, error, _ = attempt(state)
    if error is not None or arrived < len(state):
        return 'a checkpoint *without* "module." does not load any more: take the prefix off only where it is'
    for what, given in (
        ("a name missing", dict(list(wrapped.items())[:-1])),
        ("a name too many", {**wrapped, "module.head.weight": torch.zeros(2)}),
        ("other names throughout", {f"other.{name}": value for name, value in state.items()}),
    ):
        if attempt(given)[1] is None:
            return f"a checkpoint with {what} passes without a word: leave out strict=False, or look at what it returns"
    return None


@exercise(_split_by_image)
def split_by_image(learner):
    """Forty images with one to six rows each, in no order."""
    ids = [5000 + p for p in range(40) for _ in range(int(torch.randint(1, 7, ())))]
    ids = [ids[k] for k in torch.randperm(len(ids))]
    found = learner(list(ids), 0.25, 3)
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two lists of row numbers, (train, test)"
    try:
        train, test = ([int(k) for k in part] for part in found)
    except (TypeError, ValueError):
        return "the two parts must be lists of row *numbers*, which index image_ids"
    if any(not 0 <= k < len(ids) for k in train + test):
        return "these are not row numbers: image ids, perhaps? Return where the rows stand in image_ids"
    if shared := {ids[k] for k in train} & {ids[k] for k in test}:
        return (
            f"{len(shared)} images have rows on both sides: shuffle the images and deal out all rows of one "
            "together, not single rows"
        )
    if len(train) + len(test) < len(ids):
        return f"{len(ids) - len(train) - len(test)} rows are lost: each row belongs to one of the two parts"
    if len(train) + len(test) > len(ids):
        return "some rows are in there twice"
    images = len({ids[k] for k in test})
    if images == 30:
        return "the parts are swapped: return (train, test), the share is that of the test"
    if images != 10:
        return (
            f"{images} of 40 images are held out; test_share = 0.25 asks for 10 *images* (not rows)"
        )
    if sorted(test) != sorted(int(k) for k in learner(list(ids), 0.25, 3)[1]):
        return "the same seed gives another split the second time: nobody can repeat your score. Use the seed"
    splits = {tuple(sorted(int(k) for k in learner(list(ids), 0.25, seed)[1])) for seed in range(4)}
    if len(splits) == 1:
        return "every seed gives the same split: shuffle the images, or the test holds only the newest (or oldest)"
    return None
