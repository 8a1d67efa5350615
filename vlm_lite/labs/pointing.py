"""The checks of notebook 08b: three numbers for every token, and points read from what a model says."""

from vlm_lite.labs.core import exercise
from vlm_lite.labs.resolution import _judged
from vlm_lite.lessons import pointing as lesson


@exercise(lesson.mrope_positions)
def mrope_positions(learner):
    """Text, an image, text, a clip that is longer than it is wide, and text: three numbers for each token."""
    parts = [3, (1, 2, 4), 2, (5, 2, 2), 2]
    said = "these are not time, row and column, each from where the part before ended"
    return _judged(learner(parts), lesson.mrope_positions(parts), {}, said)


@exercise(lesson.parse_points)
def parse_points(learner):
    """Two points among words, with and without spaces; then bad ones, which must raise errors."""
    text = "two: <point> <frame0> <x3> <y5> and <point><frame2><x15><y0>."
    right, found = [(0, 14, 22), (2, 62, 2)], [*map(tuple, learner(text))]
    if found != right:
        return f"{text!r}: the middles of the levels, 4 pixels each, are {right}, not {found}"
    for bad in "<frame0> <x16> <y0>", "<frame3> <x0> <y0>", "<x4> <frame0> <y3>":
        try:
            learner(f"<point> {bad}")
        except ValueError:
            continue
        return f"<point> {bad} is outside or malformed, and passes without a ValueError"
    return None
