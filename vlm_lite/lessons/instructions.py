"""Instruction data written by rule from captions and boxes, their official format, and a check of form and facts.

Generated from notebooks/04b_instruction_data.py by `make notebooks`: edit the notebook.
"""

import json
import re
from collections import Counter

import numpy as np

from vlm_lite.data.tokenizer import plural
from vlm_lite.files import UserError
from vlm_lite.lessons import language, reading
from vlm_lite.lessons.language import join, name_of, pick, place, thing
from vlm_lite.lessons.world import COLOURS, SHAPES, SIZES, Item, Scene, any_scene

BOX = re.compile(
    r"an? (?:(?P<size>\w+) (?P<colour>\w+) (?P<shape>\w+)|handwritten (?P<value>\d)) in the "
    r"(?P<row>\w+) row, (?P<column>\w+) column\."
)


def read_boxes(description):
    """The Scene, things and their cells, that a `reading.describe` text is about; UserError for another text."""
    found, items = list(BOX.finditer(description)), []
    if not found or " ".join(match.group() for match in found) != description.strip():
        raise UserError(
            f"{description[:80]!r} is no description of a Shapes scene; expected sentences such as "
            "'a small red circle in the top row, left column.'"
        )
    for match in found:
        row, column, digit = match["row"], match["column"], match["value"]
        cell = {"row": language.ROWS.index(row), "col": language.COLUMNS.index(column)}
        look = ("digit", "white", "large") if digit else match.group("shape", "colour", "size")
        items.append(Item(*look, **cell, value=int(digit or -1)))
    return Scene(tuple(items))


ONE_WORD = "answer the question using a single word."  # LLaVA-1.5's words, cut to the vocabulary
IN_DETAIL = "describe the picture in detail."


def brief_prompt(question):
    """A question with LLaVA-1.5's response-format prompt, in this vocabulary."""
    return language.chat_prompt(f"{question} {ONE_WORD}")


def turns(scene, rng):
    """One (instruction, reply, form) of each form that the scene allows, in random order."""
    candidates = language.questions(scene, rng)  # [(question, answer, type), ...]
    items = sorted(scene.items, key=lambda item: (item.row, item.col))  # in reading order

    def ask():  # a type first, then a question: else the commonest type would rule
        kind = pick(rng, sorted({kind for *_, kind in candidates}))
        return pick(rng, [row for row in candidates if row[2] == kind])

    one, other = ask(), ask()
    listed = ", ".join(name_of(item, item.size) for item in items)
    all_said = " ".join(f"there is {thing(item)} in the {place(item)}." for item in items)
    found = [
        (f"{one[0]} {ONE_WORD}", one[1], "word"),
        (other[0], reading.sentence(*other), "sentence"),
        (f"list the {'things' if scene.digit else 'shapes'} in the picture.", listed, "list"),
        (IN_DETAIL, all_said, "detail"),
    ]
    if scene.shapes:
        key = pick(rng, ("colour", "size"))
        word = getattr(pick(rng, scene.shapes), key)
        same = [item for item in items if getattr(item, key) == word and not item.is_digit]
        reply = f"{len(same)}: {join([thing(item, item.size) for item in same])}."
        found.append((f"how many {word} shapes are there, and which?", reply, "reason"))
    return [found[k] for k in rng.permutation(len(found))]


def conversation(description, rng, length=3):
    """A conversation of at most `length` turns about a described scene: [{"role", "content"}, ...], user first."""
    return [
        {"role": role, "content": text}
        for ask, reply, _ in turns(read_boxes(description), rng)[:length]
        for role, text in (("user", ask), ("assistant", reply))
    ]


def writer_prompt(captions, description, examples):
    """What a text-only writer gets: examples [(context, reply), ...], then this image's captions and boxes."""
    parts = [
        "You see one image through captions and boxes. Write a conversation about it. Say only what they say."
    ]
    for context, reply in [*examples, ("\n".join([*captions, f"boxes: {description}"]), "")]:
        parts += [f"context:\n{context}", f"conversation:\n{reply}"]
    return "\n\n".join(parts)


def llava_record(image_id, messages):
    """Messages as a record of LLaVA-Instruct-150K, JSON; <image> stands in the first turn."""
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[each["role"]], "value": each["content"]} for each in messages]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    record = {"id": str(image_id), "image": f"{image_id}.png", "conversations": said}
    return json.dumps(record, indent=1)


def as_pairs(messages, prompt=language.chat_prompt):
    """Messages -> [(prompt, reply), ...], `prompt` made of what the user says. UserError out of turn."""
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(
            f"the roles of a conversation are {roles}; expected user and assistant in turn."
        )
    said = [message["content"] for message in messages]
    return [(prompt(ask), reply) for ask, reply in zip(said[::2], said[1::2], strict=True)]


def stage_talks(data, seed=0, exchanged=0.0):
    """What LLaVA's stages read of an EncodedDataset: {name: N lists of conversations, lists of (prompt, answer)}."""
    captions, asked = [five[0] for five in data.captions], {image_id: [] for image_id in data.ids}
    count = round(exchanged * len(captions))
    captions[:count] = captions[count - 1 : count] + captions[: max(0, count - 1)]
    columns = (data.questions[name][:] for name in ("image_id", "question", "answer"))
    for image_id, question, answer in zip(*columns, strict=True):
        ask = (brief_prompt, language.short_prompt)[len(asked[image_id]) % 2]
        asked[image_id].append([(ask(question), answer)])
    said = [
        [as_pairs(conversation(text, np.random.default_rng([seed, 2, k])))]
        for k, text in enumerate(data.descriptions)
    ]
    found = {
        "captions": [[[(language.CAPTION_PROMPT, text)]] for text in captions],
        "conversation": said,
        "VQA": list(asked.values()),
    }
    return found | {"mixed": [sum(each, []) for each in zip(*found.values(), strict=True)]}


def reading_rows(count, seed=7):
    """`count` texts as the language model was trained on: a scene in words before the first of five prompts."""
    rngs = (np.random.default_rng([seed, 9, k]) for k in range(count))
    documents = (reading.document(any_scene, rng, 5) for rng in rngs)
    return [[(f"{text} {talk[0][0]}".strip(), talk[0][1]), *talk[1:]] for text, talk in documents]


NOUNS = {plural(name, 2): name for name in SHAPES}
WORDS = "yes no not top bottom left right above below".split()
FACTS = {*SHAPES, *COLOURS, *SIZES, *"0123456789", *WORDS}
FORMS = {
    "word": r"[\w-]+\.?",
    "sentence": r"[^.:]+ (?:is|are) [^.:]+\.",
    "list": r"\w+ \w+(?:, \w+ \w+)*\.?",
    "detail": r"(?:there is [^.:]+\. ?)+",
    "reason": r"\d ?: [^.:]+\.",
}


def has_form(reply, form):
    """Whether a reply has the form asked for, whatever it says."""
    return re.fullmatch(FORMS[form], reply.strip()) is not None


def facts(text):
    """The facts a text states, counted: sizes, colours, shapes, numbers, places, yes and no."""
    words = (NOUNS.get(word, word) for word in re.findall(r"\w+", text.lower()))
    return Counter(word for word in words if word in FACTS)


def follows(reply, expected, form):
    """1.0 where the reply has the form asked for and states the facts of the expected one, no more and no less."""
    return float(has_form(reply, form) and facts(reply) == facts(expected))


def concreteness(texts, descriptions):
    """Two arrays (N,): the share of its image's things that a text names, and of those that the text before it names."""
    names = [[name_of(i, i.size) for i in read_boxes(text).items] for text in descriptions]
    return [
        np.array([np.mean([n in t for n in own]) for t, own in zip(said, names, strict=True)])
        for said in (texts, [*texts[-1:], *texts[:-1]])
    ]


def instruction_set(descriptions, count, seed=0):
    """`count` single instructions about described images: (image's row, instruction, reply, form)."""
    rows = []
    for index, description in enumerate(descriptions):
        chosen = turns(read_boxes(description), np.random.default_rng([seed, 4, index]))
        rows += [(index, *turn) for turn in chosen[: -(-count // len(descriptions))]]
    return rows[:count]


def ask_instructions(model, data, count):
    """Two lists of up to `count` scores in 0..1, of form and of following, of `instruction_set`'s replies."""
    rows, orders, expected, forms = zip(*instruction_set(data.descriptions, count), strict=True)
    prompts = [language.chat_prompt(order) for order in orders]
    replies = model.generate(data.features[list(rows)].float(), prompts, 64)
    judged = list(zip(replies, expected, forms, strict=True))
    return [float(has_form(r, f)) for r, _, f in judged], [follows(*each) for each in judged]
