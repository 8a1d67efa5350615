"""Recall@K and zero-shot accuracy with their ties, and hard negatives, under which the shipped CLIP is asked.

Generated from notebooks/01c_retrieval_scores.py by `make notebooks`: edit the notebook.
"""

import re

import numpy as np

from vlm_lite.lessons.world import COLOURS, SHAPES, SIZES

OPPOSITES = (("top", "bottom"), ("left", "right"), ("above", "below"))
KINDS = (tuple(COLOURS), SHAPES, tuple(SIZES), tuple("0123456789"), *OPPOSITES)
KIND_OF = {word: kind for kind in KINDS for word in kind}
OPENING = re.compile(
    r"^(there is only a|there is|this picture shows|i see|a picture of|this is|a single) "
)


def joined(words):
    return re.sub(r" ([.,])", r"\1", " ".join(words))


def meaning(caption):
    """The parts of a caption without their order. Two captions of other parts differ in meaning."""
    parts = re.split(
        r", with |, in | there is | there are |, | and ", OPENING.sub("", caption).rstrip(".")
    )
    return sorted(re.sub(r"^(an?|in) ", "", part) for part in parts)


def hard_negative(caption, rng):
    """A caption of Shapes with two words of one kind exchanged, or one turned into its opposite: no longer true.

    "a red circle and a blue star." -> "a blue circle and a red star." With nothing to exchange, one colour or digit
    becomes another. `rng` is a `numpy.random.Generator`. The caption itself comes back when it holds no such word.
    """
    words = re.findall(r"\w+|[.,]", caption)
    places = {
        kind: [i for i, word in enumerate(words) if KIND_OF.get(word) == kind] for kind in KINDS
    }
    kinds = [
        kind
        for kind in KINDS
        if kind in OPPOSITES and places[kind] or len({words[i] for i in places[kind]}) > 1
    ]
    for index in rng.permutation(len(kinds)):
        kind, new = kinds[index], list(words)
        one = int(rng.choice(places[kind]))
        others = [i for i in places[kind] if words[i] != words[one]]
        if kind in OPPOSITES and (not others or rng.random() < 0.5):
            new[one] = next(word for word in kind if word != words[one])
        else:
            other = int(rng.choice(others))
            new[one], new[other] = words[other], words[one]
        if meaning(text := joined(new)) != meaning(caption):
            return text
    for one, word in enumerate(words):
        if word in COLOURS or word.isdigit():
            others = [other for other in KIND_OF[word] if other != word]
            return joined([*words[:one], others[rng.integers(len(others))], *words[one + 1 :]])
    return caption


def replaced_word(caption, rng):
    """A caption of Shapes in which one shape, colour, size or digit has become another; a shape three times as often.

    Seldom it is true all the same, when the image holds that thing as well. The caption itself comes back when it
    names none of these. `rng` is a `numpy.random.Generator`.
    """
    words = re.findall(r"\w+|[.,]", caption)
    places = [i for i, word in enumerate(words) if KIND_OF.get(word) in KINDS[:4]]
    if not places:
        return caption
    weights = np.array([3.0 if words[i] in SHAPES else 1.0 for i in places])
    one = int(rng.choice(places, p=weights / weights.sum()))
    words[one] = str(rng.choice([other for other in KIND_OF[words[one]] if other != words[one]]))
    return joined(words)
