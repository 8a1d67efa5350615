"""Notebook 06's checks: mended functions of several styles pass; the broken ones, half and wrong mends are named."""

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


# ---- answer_loss


def cross_entropy(logits, labels, **options):
    return F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), **{"ignore_index": -100} | options
    )


def on_the_whole_row(logits, labels, q):
    targets = F.pad(labels, (q, 0), value=-100)
    return cross_entropy(logits[:, :-1], targets[:, 1:])


def by_hand(logits, labels, q):
    chosen = labels != -100
    log_p = logits[:, q - 1 : -1].log_softmax(-1)[chosen]  # (n, V)
    return -log_p.gather(1, labels[chosen][:, None]).mean()


def mean_of_rows(logits, labels, q):
    return torch.stack(
        [cross_entropy(a[None, q - 1 : -1], b[None]) for a, b in zip(logits, labels, strict=True)]
    ).mean()


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


# ---- mean_pool


def pool_by_loop(hidden, mask):
    return torch.stack([h[m == 1].mean(0) for h, m in zip(hidden, mask, strict=True)])


def pool_by_einsum(hidden, mask):
    weights = mask / mask.sum(1, keepdim=True)
    return torch.einsum("btd,bt->bd", hidden, weights)


def masked_sum(hidden, mask):
    return (hidden * mask[..., None]).sum(1)


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


# ---- accumulate


def accumulating(
    reduction="sum",
    divide=lambda micro, all_labels: (all_labels != -100).sum(),
    clear=False,
    stop=None,
    result=lambda total: total,
):
    def run(model, micro_batches):
        all_labels, total = torch.cat([labels for _, labels in micro_batches]), 0.0
        for x, labels in micro_batches[:stop]:
            if clear:
                model.zero_grad()
            loss = cross_entropy(model(x), labels, reduction=reduction) / divide(
                micro_batches, all_labels
            )
            loss.backward()
            total += loss.item()
        return result(total)

    return run


def in_one_go(model, micro_batches):
    x, labels = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    loss = cross_entropy(model(x), labels)
    loss.backward()
    return loss


def means_weighted(model, micro_batches):
    counts = [(labels != -100).sum() for _, labels in micro_batches]
    losses = [
        cross_entropy(model(x), y) * n / sum(counts)
        for (x, y), n in zip(micro_batches, counts, strict=True)
    ]
    sum(losses).backward()
    return sum(losses).item()


def without_backward(model, micro_batches):
    return sum(cross_entropy(model(x), y).item() for x, y in micro_batches) / len(micro_batches)


# ---- split_by_picture


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
        pictures = sorted(set(image_ids))
        if shuffle:
            (random.Random(seed) if seeded else random).shuffle(pictures)
        held = set(pictures[: round(share(image_ids, test_share) * len(pictures))])
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
    pictures = torch.tensor(sorted(set(image_ids)))
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    is_test = torch.isin(
        torch.tensor(image_ids), pictures[order[: round(test_share * len(pictures))]]
    )
    return (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]


RIGHT = [
    (check.answer_loss, on_the_whole_row),
    (check.answer_loss, by_hand),
    (check.position_ids, by_loop),
    (check.position_ids, padding_at_one),
    (check.mean_pool, pool_by_loop),
    (check.mean_pool, pool_by_einsum),
    (check.load_weights, with_a_wrapper),
    (
        check.load_weights,
        lambda model, state: strict_only(
            model, {k.removeprefix("module."): state[k] for k in state}
        ),
    ),
    (check.accumulate, in_one_go),
    (check.accumulate, means_weighted),
    (check.split_by_picture, split_with()),
    (check.split_by_picture, split_by_hand),
]
WRONG = [
    (check.answer_loss, broken("answer_loss"), "nothing is shifted"),
    (
        check.answer_loss,
        lambda x, y, q: cross_entropy(x[:, q:-1], y[:, 1:]),
        "first token is never predicted",
    ),
    (check.answer_loss, lambda x, y, q: cross_entropy(x[:, q - 2 : -2], y), "shifted twice"),
    (check.answer_loss, lambda x, y, q: cross_entropy(x[:, q - 1 : -2], y[:, 1:]), "shifted twice"),
    (check.answer_loss, lambda x, y, q: cross_entropy(x[:, q + 1 :], y[:, :-1]), "the wrong way"),
    (
        check.answer_loss,
        lambda x, y, q: cross_entropy(x[:, : y.shape[1]], y),
        "the first T positions",
    ),
    (
        check.answer_loss,
        lambda x, y, q: cross_entropy(x[:, q - 1 : -1], y.clamp(min=0)),
        "ignore_index=-100",
    ),
    (check.answer_loss, mean_of_rows, "average each row first"),
    (
        check.answer_loss,
        lambda x, y, q: cross_entropy(x[:, q - 1 : -1], y, reduction="sum"),
        "take their mean",
    ),
    (
        check.answer_loss,
        lambda x, y, q: cross_entropy(x[:, q - 1 : -1], y, reduction="none"),
        "one number",
    ),
    (check.answer_loss, lambda x, y, q: on_the_whole_row(x, y, q) - 50, "the mean surprise"),
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
    (check.mean_pool, broken("mean_pool"), "averaged in"),
    (check.mean_pool, lambda h, m: masked_sum(h, m) / h.shape[1], "not by T"),
    (check.mean_pool, masked_sum, "number of own tokens"),
    (check.mean_pool, lambda h, m: masked_sum(h, m) / m.sum(), "whole batch"),
    (check.mean_pool, lambda h, m: h.sum(1) / m.sum(1, keepdim=True), "still added"),
    (
        check.mean_pool,
        lambda h, m: h.masked_fill(m[..., None] == 0, -torch.inf).amax(1),
        "largest value",
    ),
    (check.mean_pool, lambda h, m: h[:, -1], "one token"),
    (check.mean_pool, lambda h, m: h * m[..., None], "shape (4, 6, 10)"),
    (check.load_weights, broken("load_weights"), "not one weight arrived"),
    (check.load_weights, strict_only, "is refused"),
    (check.load_weights, replaced_everywhere, "front only"),
    (check.load_weights, stripped_but_lenient, "a name missing passes"),
    (check.load_weights, missing_only, "a name too many passes"),
    (check.load_weights, always_cut, "*without*"),
    (check.load_weights, returns_the_report, "return the model"),
    (check.accumulate, broken("accumulate"), "mean of means"),
    (check.accumulate, accumulating("mean", lambda micro, _: 1), "added up"),
    (check.accumulate, accumulating(clear=True), "only the last"),
    (check.accumulate, accumulating("mean", lambda micro, _: 1, clear=True), "only the last"),
    (check.accumulate, accumulating("mean", lambda micro, _: 1, stop=1), "only the first"),
    (check.accumulate, accumulating(divide=lambda micro, y: y.numel()), "-100 too"),
    (check.accumulate, accumulating(divide=lambda micro, y: 1), "never divided"),
    (check.accumulate, accumulating(divide=lambda micro, y: len(micro)), "number of micro-batches"),
    (check.accumulate, accumulating(result=lambda total: total / 3), "return the mean loss"),
    (check.accumulate, without_backward, "no gradient is left"),
    (check.split_by_picture, broken("split"), "on both sides"),
    (check.split_by_picture, split_with(by_row=True, drop=True), "rows are lost"),
    (check.split_by_picture, split_with(shuffle=False), "every seed gives the same"),
    (check.split_by_picture, split_with(seeded=False), "nobody can repeat"),
    (check.split_by_picture, split_with(swap=True), "swapped"),
    (
        check.split_by_picture,
        split_with(share=lambda ids, share: 0.5),
        "of 40 pictures are held out",
    ),
    (check.split_by_picture, split_with(by_id=True), "not row numbers"),
    (
        check.split_by_picture,
        lambda ids, share, seed: split_with()(ids, share, seed)[0],
        "two lists",
    ),
]
