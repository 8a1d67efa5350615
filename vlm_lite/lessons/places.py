"""Answers with coordinates, in new tokens of a trained VLM, and positions in time for clips.

Generated from notebooks/08b_pointing_and_time.py by `make notebooks`: edit the notebook.
"""

import re

import torch

from vlm_lite.lessons import llava

NEW_WORDS = ("point", '<point x="', '" y="', '">')


def add_words(model, words):
    """Give a VLM new tokens, and let its connector and language model learn: of the embedding, the new rows alone."""
    language_model = model.language_model
    known = language_model.get_input_embeddings().num_embeddings
    model.tokenizer.add_tokens(list(words))
    language_model.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
    llava.set_trainable(model, "all")
    weight = language_model.get_input_embeddings().weight
    is_new = torch.arange(len(weight), device=weight.device)[:, None] >= known
    weight.register_hook(lambda gradient: gradient * is_new)


def parse_points(said, width, height):
    """Text with points in percent -> [(x, y), ...] in pixels of an image; ValueError for a bad one."""
    found = re.findall(r'<point x="([^"]*)" y="([^"]*)">', said)
    if len(found) < said.count("<point"):
        raise ValueError(f"malformed point in {said!r}")
    points = [[float(value.replace(" ", "")) for value in point] for point in found]
    if not all(0 <= value <= 100 for point in points for value in point):
        raise ValueError(f"point outside the image in {said!r}: x and y are percent, 0 to 100")
    return [(x / 100 * width, y / 100 * height) for x, y in points]


def mrope_positions(parts):
    """Text lengths and (frames, rows, columns) in order -> (3, T): time, row and column of every token."""
    found, start = [], 0
    for part in parts:
        if isinstance(part, int):
            numbers = torch.arange(part).expand(3, -1)
        else:
            numbers = torch.cartesian_prod(*map(torch.arange, part)).T
        found.append(start + numbers)
        start = int(found[-1].max()) + 1
    return torch.cat(found, dim=1)
