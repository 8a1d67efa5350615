"""Captions and questions of a scene in many ways, with unique names and balanced answers.

Generated from notebooks/00c_language.py by `make notebooks`: edit the notebook.
"""

from itertools import permutations

from vlm_lite.data.tokenizer import COLUMNS, ROWS, plural
from vlm_lite.lessons.world import COLOURS, SHAPES, SIZES

REFERENCES = "shape, colour, colour shape, size shape, size colour, size colour shape"


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def with_article(phrase):
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def name_of(item, without=""):
    """An item's attributes as words: "small red circle"; `without` is a word to leave out."""
    if item.is_digit:
        return f"handwritten {item.value}"
    return " ".join(word for word in (item.size, item.colour, item.shape) if word != without)


def thing(item, without=""):
    """An item with its article: "a small red circle"."""
    return with_article(name_of(item, without))


def place(item):
    """The quarter of the image an item is in: "top left", "bottom right", ..."""
    return ("top" if item.row < 2 else "bottom") + (" left" if item.col < 2 else " right")


def cell(item):
    """The exact grid cell of an item in words: "top row, right column"."""
    return f"{ROWS[item.row]} row, {COLUMNS[item.col]} column"


def references(scene, item, hidden=()):
    """Every phrase that names `item` and nothing else in the scene, not using the attributes in `hidden`."""
    if item.is_digit:
        return [] if "value" in hidden else ["the digit"]
    phrases = []
    for keys in map(str.split, REFERENCES.split(",")):
        words = [getattr(item, k) for k in keys]
        same = [o for o in scene.shapes if [getattr(o, k) for k in keys] == words]
        if len(same) == 1 and not set(keys) & set(hidden):
            phrases.append("the " + " ".join(words if "shape" in keys else [*words, "shape"]))
    return phrases


def join(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


CAPTION_PROMPT = "caption:"
RELATIONS = (("left of", "right of"), ("above", "below"))
PAIRS = {"left of": ("col", -1), "right of": ("col", 1), "above": ("row", -1), "below": ("row", 1)}


def compare(one, other, relation):
    """Whether `one` is "left of" (right of, above, below) `other`; in the same column, neither left nor right."""
    axis, sign = PAIRS[relation]
    return (getattr(one, axis) - getattr(other, axis)) * sign > 0


def captions(scene, rng):
    """Five captions of a scene, as five people might write them. The first tells everything but the exact cells."""
    items = [scene.items[i] for i in rng.permutation(len(scene.items))]
    full = [f"{thing(i)} in the {place(i)}" for i in items]
    corners = {place(i): [thing(o) for o in items if place(o) == place(i)] for i in items[::-1]}
    by_place = [
        f"in the {p} there {'is' if len(n) == 1 else 'are'} {join(n)}" for p, n in corners.items()
    ]
    plain = [thing(i) for i in items]
    less = [thing(i, i.size) for i in items]
    if len(items) == 1:
        alone = f"a single {name_of(items[0])} on a dark background."
        last = pick(rng, [f"there is only {plain[0]}.", alone])
    else:
        relation = pick(rng, [r for r in PAIRS if compare(*items[:2], r)])
        rest = f", with {join(plain[2:])}" if plain[2:] else ""
        last = f"{plain[0]} {relation} {plain[1]}{rest}."
    second = pick(rng, ["there is ", "this picture shows ", "i see "])
    second += join([full[k] for k in rng.permutation(len(full))])
    fourth = pick(rng, ["a picture of ", "", "this is "])
    fourth += join(plain if rng.random() < 0.7 else less)
    return [join(full) + ".", second + ".", ", ".join(by_place) + ".", fourth + ".", last]


def questions(scene, rng):
    """Candidate questions about a scene: a list of (question, answer, type), several of each type it allows."""
    found, shapes = [], scene.shapes
    for item in shapes:
        for ref in references(scene, item, hidden=("colour",)):
            found.append((f"what colour is {ref}?", item.colour, "colour"))
        for key, forms in (
            ("shape", ("what is {}?", "what kind of shape is {}?")),
            ("size", ("what size is {}?", "is {} small or large?")),
        ):
            for ref in references(scene, item, hidden=(key,)):
                second = rng.random() >= 0.5 if key == "shape" else int(rng.integers(2))
                found.append((forms[second].format(ref), getattr(item, key), key))
    found.append(("how many shapes are there?", str(len(shapes)), "count"))
    for key, words in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("size", tuple(SIZES))):
        here = [getattr(i, key) for i in shapes]
        for word in sorted({*here, pick(rng, words)}):
            noun = plural(word, 2) if key == "shape" else f"{word} shapes"
            found.append((f"how many {noun} are there?", str(here.count(word)), "count"))
    found += existence_questions(scene, rng) + relation_questions(scene, rng)
    if scene.digit:
        forms = (
            "which digit is written?",
            "what digit is in the picture?",
            "which digit is there?",
        )
        found.append((pick(rng, forms), str(scene.digit.value), "digit"))
    return found


def existence_questions(scene, rng):
    """Questions "is there ...?": what is there, what isn't, and a thing of the scene with one attribute changed."""
    pairs, found = {(i.colour, i.shape) for i in scene.shapes}, []

    def add(what, answer):
        found.append((f"is there {with_article(what)}?", answer, "existence"))

    for key, words in (("shape", SHAPES), ("colour", tuple(COLOURS))):
        here = sorted({getattr(i, key) for i in scene.shapes})
        noun = " shape" if key == "colour" else ""
        if here:
            add(pick(rng, here) + noun, "yes")
        add(pick(rng, [w for w in words if w not in here]) + noun, "no")
    for item in scene.shapes:
        add(name_of(item, item.size), "yes")
        other = rng.random() < 0.5
        colour = pick(rng, tuple(COLOURS)) if other else item.colour
        wrong = (colour, item.shape if other else pick(rng, SHAPES))
        if wrong not in pairs:
            add(" ".join(wrong), "no")
    if rng.random() < 0.5:
        add("digit", "yes" if scene.digit else "no")
    return found


def relation_questions(scene, rng):
    """Questions such as "is the star left of the red circle?", both ways round, of things with unique names."""
    found, named = [], [(item, references(scene, item)) for item in scene.items]
    for (one, its), (other, others) in permutations(named, 2):
        if not its or not others:
            continue
        a, b = pick(rng, its), pick(rng, others)
        for relations in RELATIONS:
            level = not any(compare(one, other, relation) for relation in relations)
            if level and rng.random() >= 0.15:
                continue
            relation = pick(rng, relations)
            answer = "yes" if compare(one, other, relation) else "no"
            found.append((f"is {a} {relation} {b}?", answer, "relation"))
    return found


ANSWERS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "count": tuple("01234"),
    "digit": tuple("0123456789"),
    "existence": ("yes", "no"),
    "relation": ("yes", "no"),
}


def short_prompt(question):
    """The prompt for a short answer, as the language model learned it."""
    return f"question: {question} answer:"


def chat_prompt(question):
    """The prompt for an answer in a sentence; several turns follow one another."""
    return f"<user> {question} <assistant>"


def answer_type(question_type):
    """The VQA v2 answer type of one of our question types."""
    known = {"existence": "yes/no", "relation": "yes/no", "count": "number", "digit": "number"}
    return known.get(question_type, "other")


def human_answers(answer, rng):
    """Ten answers as ten people might give them: mostly `answer`, sometimes another word for the same thing."""
    words = "large big, small little, 0 zero, 1 one, 2 two, 3 three, 4 four"
    other = dict(map(str.split, words.split(","))).get(answer)
    few = int(rng.integers(0, 4)) if other else 0
    return [answer] * (10 - few) + [other] * few
