"""The check of notebook 03's first stage: who may look at whom, for each of BLIP-2's three objectives."""

import torch

from vlm_lite.labs.core import exercise, shape_problem
from vlm_lite.models.blip2 import MASKS
from vlm_lite.models.blip2 import stage1_mask as reference


def _stage1_mask(task, num_queries, text_mask):
    """task "itc", "itm" or "itg", text_mask (B, L), 1 for words -> bools (B, Q+L, Q+L), True: row may read column."""
    return reference(task, num_queries, text_mask)


@exercise(_stage1_mask)
def stage1_mask(learner):
    """The mask of each objective for texts of several lengths: among queries, between queries and text, the padding."""
    num_queries, length = 3, 6
    lengths = torch.tensor([length, *torch.randint(2, length, (3,)).tolist()])
    text_mask = (torch.arange(length) < lengths[:, None]).long()
    queries, text = slice(0, num_queries), slice(num_queries, None)
    for task in MASKS:
        found, right = (
            learner(task, num_queries, text_mask),
            reference(task, num_queries, text_mask),
        )
        if problem := shape_problem(found, tuple(right.shape), f"the mask of {task}"):
            return problem
        found = found.bool()
        if torch.equal(found, right):
            continue
        if torch.equal(found, ~right):
            return f"your mask of {task} is the wrong way round: True stands for *may* look"
        if torch.equal(found, right.transpose(1, 2)):
            return f"your mask of {task} is transposed: the row is who reads, the column is what is read"
        hidden = text_mask[:, None, :].expand(-1, num_queries + length, -1) == 0
        if found[:, :, text][hidden].any():
            return f"in your mask of {task} somebody reads padding: hide the columns where text_mask is 0"
        parts = {
            "a query reads the queries": (queries, queries),
            "a query reads the text": (queries, text),
            "the text reads the queries": (text, queries),
            "the text reads the text": (text, text),
        }
        for words, (rows, columns) in parts.items():
            mine, its = found[:, rows, columns], right[:, rows, columns]
            if not torch.equal(mine, its):
                return f"in your mask of {task}, {words} wrongly: {_hint(task, words, mine, its)}"
    return None


def _hint(task, words, mine, right):
    if words == "a query reads the queries":
        return "the queries are a set, each sees each, in all three objectives"
    if words == "a query reads the text":
        return (
            "they may, as picture and caption are compared word by word"
            if right.any()
            else "they may not, or they would pass on words instead of what they saw"
        )
    if words == "the text reads the queries":
        return (
            "it may, for the queries are all it knows of the picture"
            if right.any()
            else "it may not: each side must make its vector alone"
        )
    if task == "itg":
        return (
            "a word may read itself and what stands before it, not what comes after: it would copy the word that "
            "it is to predict"
            if (mine & ~right).any()
            else "a word may read itself and all that stands before it"
        )
    return "nothing is predicted here, so each word may read each word, later ones too"
