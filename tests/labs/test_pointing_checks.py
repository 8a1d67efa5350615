"""Notebook 08b's checks: right answers in another style pass, and each known mistake is caught, with what it gives.

An attempt is a function, or the lesson's own code with an edit (what stands there, what instead).
"""

import re

import torch

from vlm_lite.labs import check


def by_pattern(text):
    points = []
    for part in text.replace(" ", "").split("<point>")[1:]:
        match = re.match(r"<frame(\d)><x(\d+)><y(\d+)>(?!<[fxy])", part)
        if not match:
            raise ValueError(part)
        t, x, y = map(int, match.groups())
        if t > 2 or max(x, y) > 15:
            raise ValueError(part)
        points.append((t, 4 * x + 2, 4 * y + 2))
    return points


def by_counting(parts):
    numbers, start = [], 0
    for part in parts:
        if isinstance(part, int):
            part = [(start + k,) * 3 for k in range(part)]
        else:
            frames, rows, columns = part
            part = [
                (start + t, start + r, start + c)
                for t in range(frames)
                for r in range(rows)
                for c in range(columns)
            ]
        numbers += part
        start = max(map(max, numbers)) + 1
    return torch.tensor(numbers).T


RIGHT = {check.parse_points: [by_pattern], check.mrope_positions: [by_counting]}
POINT = "(t, STEP * (x + 0.5), STEP * (y + 0.5))"
WRONG = {
    check.parse_points: {
        "not [(0, 3, 5)": (POINT, "(t, x, y)"),
        "not [(0, 12.0, 20.0)": (POINT, "(t, STEP * x, STEP * y)"),
        "not [(0, 22.0, 14.0)": (POINT, "(t, STEP * (y + 0.5), STEP * (x + 0.5))"),
        "not [(0, 14.0, 22.0)]": ("for t, x, y in points]", "for t, x, y in points[:1]]"),
        "<x16> <y0> is outside": ("max(x, y) >= LEVELS", "False"),
        "<frame3> <x0> <y0> is outside": ("t >= FRAMES or", ""),
        "<x4> <frame0> <y3> is outside or malformed": ("if any(text", "if False and any(text"),
    },
    check.mrope_positions: {
        "these are not time": (
            "int(found[-1].max()) + 1",
            "start + (part if isinstance(part, int) else part[0] * part[1] * part[2])",
        ),
        "time, row and column": ("int(found[-1].max()) + 1", "int(found[-1][1:].max()) + 1"),
        "row and column, each": (
            "start + numbers",
            "numbers + start * (1 if isinstance(part, int) else torch.tensor([[1], [0], [0]]))",
        ),
        "where the part before ended": ("int(found[-1].max()) + 1", "int(found[-1].max())"),
    },
}
