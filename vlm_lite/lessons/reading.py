"""The texts that the shipped language model was trained on, and a look at what it learnt from them.

Generated from notebooks/00c_what_it_reads.py by `make notebooks`: edit the notebook.
"""

from vlm_lite.data.language import (
    ANSWERS,
    CAPTION_PROMPT,
    PAIRS,
    STEPS,
    captions,
    chat_prompt,
    compare,
    describe,
    name_of,
    pick,
    place,
    questions,
    references,
    sentence,
    short_prompt,
)
from vlm_lite.data.tokenizer import COLUMNS, LETTERS, ROWS

REQUESTS = """describe the image.
what do you see?
describe this picture in detail.
what is in the picture?
please describe the picture in one sentence.""".split("\n")


def two_things(scene, rng):
    """Two things of a scene, a relation to ask about, and what both need: (one, other, relation, axis, word, names)."""
    one, other = (scene.items[i] for i in rng.permutation(len(scene.items))[:2])
    relation = pick(rng, tuple(PAIRS))
    return one, other, relation, *axis_of(relation)


def axis_of(relation):
    axis = PAIRS[relation][0]
    return (axis, "column", COLUMNS) if axis == "col" else (axis, "row", ROWS)


def either_way(axis, difference):
    """The words of "left or right of" or "above or below", and the one that a difference of places calls for."""
    text = "left or right of" if axis == "col" else "above or below"
    return text, text.split()[0 if difference < 0 else 2]


def steps(scene, rng):
    """A relation answered step by step, as a (prompt, answer) pair, or None when the scene has one thing."""
    if len(scene.items) < 2:
        return None
    one, other, relation, axis, word, names = two_things(scene, rng)
    a, b = ("the digit" if i.is_digit else f"the {name_of(i)}" for i in (one, other))
    true = [r for r in PAIRS if PAIRS[r][0] == axis and compare(one, other, r)]
    so = f"so {a} is {true[0]} {b}." if true else f"they are in the same {word}."
    where = (f"{x} is in the {names[getattr(i, axis)]} {word}." for x, i in ((a, one), (b, other)))
    answer = "yes" if relation in true else "no"
    return (
        short_prompt(f"is {a} {relation} {b}? {STEPS}"),
        f"{' '.join(where)} {so} the answer is {answer}.",
    )


def single_steps(scene, rng):
    """The steps that a relation is made of: where a thing is, which of two places comes first, and for two things.

    A relation asked for with yes or no is an exclusive-or: no part of it alone says anything about the answer. A small
    model stays at chance for long unless it first learns to *name* the relation ("left or right of?").
    """
    kind = rng.random()
    if len(scene.items) > 1 and kind < 0.4:
        one, other, _, axis, *_ = two_things(scene, rng)
        a, b = references(scene, one), references(scene, other)
        if a and b and getattr(one, axis) != getattr(other, axis):
            either, answer = either_way(axis, getattr(one, axis) - getattr(other, axis))
            return short_prompt(f"is {pick(rng, a)} {either} {pick(rng, b)}?"), answer
    relation = pick(rng, tuple(PAIRS))
    axis, word, names = axis_of(relation)
    item = pick(rng, scene.items)
    refs = references(scene, item)
    if refs and kind < 0.7:
        return short_prompt(f"which {word} is {pick(rng, refs)} in?"), names[getattr(item, axis)]
    one, other = (int(i) for i in rng.permutation(4)[:2])
    if rng.random() < 0.4:
        either, answer = either_way(axis, one - other)
        return short_prompt(
            f"is the {names[one]} {word} {either} the {names[other]} {word}?"
        ), answer
    question = f"is the {names[one]} {word} {relation} the {names[other]} {word}?"
    return short_prompt(question), "yes" if (one - other) * PAIRS[relation][1] > 0 else "no"


def with_options(question, answer, kind, rng):
    others = [p for p in ANSWERS[kind] if p != answer]
    chosen = [answer] + [others[i] for i in rng.permutation(len(others))[:3]]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    listed = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, chosen, strict=False))
    return short_prompt(f"{question} {listed}"), LETTERS[chosen.index(answer)]


def exchange(scene, rng, candidates=None):
    """One (prompt, answer) pair about a scene, in one of the styles that the course uses.

    `candidates` is the scene's `questions`, when the caller has them already.
    """
    style = rng.random()
    if style < 0.06:
        return CAPTION_PROMPT, pick(rng, captions(scene, rng))
    if style < 0.10:
        form = pick(rng, REQUESTS)
        return chat_prompt(form), captions(scene, rng)[0]
    if style < 0.15:
        item = pick(rng, scene.items)
        refs = references(scene, item)
        if refs:
            ref = pick(rng, refs)
            return chat_prompt(f"where is {ref}?"), f"{ref} is in the {place(item)}."
    if style < 0.21 and (worked := steps(scene, rng)):
        return worked
    if style < 0.37:
        return single_steps(scene, rng)
    candidates = candidates or questions(scene, rng)
    kinds = sorted({k for _, _, k in candidates})
    kind = "relation" if "relation" in kinds and rng.random() < 0.35 else pick(rng, kinds)
    question, answer, kind = pick(rng, [c for c in candidates if c[2] == kind])
    question = question.replace("colour", "color") if rng.random() < 0.2 else question
    if style < 0.45:
        return with_options(question, answer, kind, rng)
    if style < 0.53:
        return chat_prompt(question), sentence(question, answer, kind)
    if kind == "existence" and style < 0.63:
        question = question.replace("?", pick(rng, [" in the image?", " in the picture?"]))
    return short_prompt(question), answer


def document(make_scene, rng, exchanges=8, blind=0.12):
    """One text of the language model: (description or "", [(prompt, answer), ...]).

    With probability `blind` there is no description, and every question is about another scene: the prior.
    """
    if rng.random() < blind:
        return "", [exchange(make_scene(rng), rng) for _ in range(exchanges)]
    scene = make_scene(rng)
    candidates = questions(scene, rng)
    return describe(scene, rng), [exchange(scene, rng, candidates) for _ in range(exchanges)]
