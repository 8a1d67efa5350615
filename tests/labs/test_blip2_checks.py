"""The check of notebook 03's masks: right answers of several styles pass, and each known mistake is named."""

import torch

from vlm_lite.labs import check
from vlm_lite.models.blip2 import stage1_mask as right


def by_blocks(task, num_queries, text_mask):
    """Another style: four blocks, put together."""
    rows, length = text_mask.shape
    words = text_mask[:, None].expand(-1, length, -1) == 1
    if task == "itg":
        words = words & (torch.arange(length)[:, None] >= torch.arange(length))
    heard = (
        text_mask[:, None].expand(-1, num_queries, -1) == 1
        if task == "itm"
        else torch.zeros(rows, num_queries, length, dtype=torch.bool)
    )
    asked = torch.full((rows, length, num_queries), task != "itc")
    among = torch.ones(rows, num_queries, num_queries, dtype=torch.bool)
    return torch.cat([torch.cat([among, heard], dim=2), torch.cat([asked, words], dim=2)], dim=1)


def changed(task_of, change):
    def wrong(task, num_queries, text_mask):
        mask = right(task, num_queries, text_mask).clone()
        if task == task_of:
            change(
                mask, slice(0, num_queries), slice(num_queries, None), text_mask.bool()[:, None, :]
            )
        return mask

    return wrong


def leak(mask, queries, text, real):
    mask[:, queries, text] = real


def apart(mask, queries, text, real):
    mask[:, text, queries] = False


def peek(mask, queries, text, real):
    mask[:, text, queries] = True


def future(mask, queries, text, real):
    mask[:, text, text] = real


def blind_to_itself(mask, queries, text, real):
    mask[:, text, text] &= ~torch.eye(mask[:, text, text].shape[-1], dtype=torch.bool)


def causal_queries(mask, queries, text, real):
    count = queries.stop
    mask[:, queries, queries] = torch.ones(count, count, dtype=torch.bool).tril()


def causal_text(mask, queries, text, real):
    mask[:, text, text] &= torch.ones(real.shape[-1], real.shape[-1], dtype=torch.bool).tril()


RIGHT = [
    (check.stage1_mask, right),
    (check.stage1_mask, by_blocks),
    (check.stage1_mask, lambda task, q, m: right(task, q, m).long()),
]
WRONG = [
    (check.stage1_mask, changed("itg", leak), "a query reads the text wrongly"),
    (check.stage1_mask, changed("itc", leak), "pass on words instead of what they saw"),
    (check.stage1_mask, changed("itg", apart), "all it knows of the picture"),
    (check.stage1_mask, changed("itc", peek), "make its vector alone"),
    (check.stage1_mask, changed("itg", future), "copy the word that it is to predict"),
    (check.stage1_mask, changed("itg", blind_to_itself), "itself and all that stands before it"),
    (check.stage1_mask, changed("itc", causal_text), "later ones too"),
    (check.stage1_mask, changed("itc", causal_queries), "the queries are a set"),
    (
        check.stage1_mask,
        lambda task, q, m: right(task, q, torch.ones_like(m)),
        "somebody reads padding",
    ),
    (check.stage1_mask, lambda task, q, m: ~right(task, q, m), "the wrong way round"),
    (check.stage1_mask, lambda task, q, m: right(task, q, m).transpose(1, 2), "transposed"),
    (check.stage1_mask, lambda task, q, m: right(task, q, m)[0], "shape"),
]
