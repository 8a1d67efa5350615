"""The checks of notebook 08b: three numbers for every token, and points read from what a model says."""

from vlm_lite.labs.core import close, exercise
from vlm_lite.labs.resolution import _judged
from vlm_lite.lessons import pointing as lesson


@exercise(lesson.mrope_positions)
def mrope_positions(learner):
    """Text, an image, text, a clip that is longer than it is wide, and text: three numbers for each token."""
    parts = [3, (1, 2, 4), 2, (5, 2, 2), 2]
    right = lesson.mrope_positions(parts)

    def moved(*changes):
        found = right.clone()
        for rows, begin, end, by in changes:
            found[rows, begin:end] += by
        return found

    every, place = slice(3), slice(1, 3)
    return _judged(
        learner(parts),
        right,
        {
            "after an image the text goes on as if each patch took a number; it goes on after the largest": moved(
                (every, 11, 35, 4), (every, 33, 35, 15)
            ),
            "time is left out of the largest number: the text would share numbers with the clip's end": moved(
                (every, 33, 35, -3)
            ),
            "an image's rows and columns begin at 0; they begin where the text before it ends": moved(
                (place, 3, 11, -3), (every, 11, 35, -3), (place, 13, 33, -6)
            ),
        },
        "your numbers are not time, row and column, each from where the part before ended",
    )


@exercise(lesson.parse_points)
def parse_points(learner):
    """Two points among words, with and without spaces, and none; then bad ones, which must raise errors."""
    text = "two: <point> <frame0> <x3> <y5> and <point><frame2><x15><y0>."
    found, right = [tuple(map(float, each)) for each in learner(text)], [(0, 14, 22), (2, 62, 2)]
    for said, wrong in {
        "these are levels; a level is 4 pixels wide": [(0, 3, 5), (2, 15, 0)],
        "a level begins at these pixels; give its middle": [(0, 12, 20), (2, 60, 0)],
        "x and y are exchanged": [(0, 22, 14), (2, 2, 62)],
        "only the first point is found": right[:1],
    }.items():
        if close(found, wrong):
            return said
    if not close(found, right):
        return f"{text!r} has the points {right}, not {found}"
    if len(learner("nothing")):
        return "a text without a point gives an empty list"
    for bad, said in {
        "<point> <frame0> <x16> <y0>": "lies outside the image",
        "<point> <frame3> <x0> <y0>": "is in no frame of a clip",
        "<point> <frame0> <x4>": "is malformed",
        "<point> <x4> <frame0> <y3>": "is malformed",
        "<point> <frame0> <x4> <y3> <x5>": "has a coordinate too many",
        "<point> <frame0> <x4> <y3> <point>": "is malformed (the second)",
    }.items():
        try:
            learner(bad)
        except ValueError:
            continue
        return f"{bad} {said}, and passes without a ValueError"
    return None
