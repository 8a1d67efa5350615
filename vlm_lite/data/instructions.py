"""Instruction data made from words alone, as LLaVA's was: captions and boxes in, conversations out.

LLaVA gave GPT-4 the captions of an image and the boxes of its things, and asked for three kinds of data: conversation,
detailed description and complex reasoning (Liu et al. 2023, section 3 and table 14). Here `read_boxes` reads the exact
description of a Shapes scene, whose cells are its boxes, and `conversation` writes the same three kinds by rule.
"""

import json
import re
from collections import Counter

import numpy as np

from vlm_lite.data.language import (
    CAPTION_PROMPT,
    COLUMNS,
    ROWS,
    _join,
    _name,
    _pick,
    chat_prompt,
    document,
    exchange,
    place,
    questions,
    sentence,
    short_prompt,
    thing,
)
from vlm_lite.data.scenes import COLOURS, SHAPES, SIZES, Item, Scene, any_scene
from vlm_lite.data.tokenizer import plural
from vlm_lite.files import UserError, data_path, read_json

ONE_WORD = "answer the question using a single word."  # LLaVA-1.5's words for a short answer, cut to the vocabulary
IN_DETAIL = "describe the picture in detail."
_BOX = re.compile(
    r"an? (?:(?P<size>\w+) (?P<colour>\w+) (?P<shape>\w+)|handwritten (?P<value>\d)) in the "
    r"(?P<row>\w+) row, (?P<column>\w+) column\."
)


def brief_prompt(question):
    """A question with LLaVA-1.5's response-format prompt, in this vocabulary."""
    return chat_prompt(f"{question} {ONE_WORD}")


def writer_prompt(captions, description, examples):
    """What a text-only writer gets: instructions, examples [(context, reply), ...], this image's captions and boxes."""
    parts = [
        "You see one image through captions and boxes. Write a conversation about it. Say only what they say."
    ]
    for context, reply in [*examples, ("\n".join([*captions, f"boxes: {description}"]), "")]:
        parts += [f"context:\n{context}", f"conversation:\n{reply}"]
    return "\n\n".join(parts)


def llava_record(image_id, messages):
    """Messages [{"role", "content"}, ...] as a record of LLaVA-Instruct-150K, JSON; <image> stands in the first turn."""
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[each["role"]], "value": each["content"]} for each in messages]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    record = {"id": str(image_id), "image": f"{image_id}.png", "conversations": said}
    return json.dumps(record, indent=1)


def read_boxes(description):
    """The things of a scene and the cells they are in, read from its plain `language.describe` text: a Scene.

    UserError for a text that is not such a description.
    """
    found = list(_BOX.finditer(description))
    if not found or " ".join(match.group() for match in found) != description.strip():
        raise UserError(
            f"{description[:80]!r} is no description of a Shapes scene; expected sentences such as 'a "
            "small red circle in the top row, left column.'"
        )
    items = []
    for match in found:
        cell = {"row": ROWS.index(match["row"]), "col": COLUMNS.index(match["column"])}
        items.append(
            Item("digit", "white", "large", **cell, value=int(match["value"]))
            if match["value"]
            else Item(match["shape"], match["colour"], match["size"], **cell)
        )
    return Scene(tuple(items))


def turns(scene, rng):
    """One (instruction, reply, form) of each form that the scene allows, in random order.

    word: one word. sentence: one sentence. list: things with commas between. detail: a sentence for each thing, in
    reading order. reason: a number, and what it was counted from.
    """
    candidates = questions(scene, rng)
    items = sorted(scene.items, key=lambda item: (item.row, item.col))

    def ask():
        kind = _pick(rng, sorted({kind for *_, kind in candidates}))
        return _pick(rng, [row for row in candidates if row[2] == kind])

    one, other = ask(), ask()
    found = [
        (f"{one[0]} {ONE_WORD}", one[1], "word"),
        (other[0], sentence(*other), "sentence"),
        (
            f"list the {'things' if scene.digit else 'shapes'} in the picture.",
            ", ".join(_name(item, item.size) for item in items),
            "list",
        ),
        (
            IN_DETAIL,
            " ".join(f"there is {thing(item)} in the {place(item)}." for item in items),
            "detail",
        ),
    ]
    if scene.shapes:
        key = _pick(rng, ("colour", "size"))
        word = getattr(_pick(rng, scene.shapes), key)
        same = [item for item in items if getattr(item, key) == word and not item.is_digit]
        reply = f"{len(same)}: {_join([thing(item, item.size) for item in same])}."
        found.append((f"how many {word} shapes are there, and which?", reply, "reason"))
    return [found[k] for k in rng.permutation(len(found))]


def conversation(description, rng, length=3):
    """A conversation about a described scene in the common format: [{"role", "content"}, ...], `length` turns or fewer.

    The roles are "user" and "assistant", in turn.
    """
    chosen = turns(read_boxes(description), rng)[:length]
    return [
        {"role": role, "content": text}
        for ask, reply, _ in chosen
        for role, text in (("user", ask), ("assistant", reply))
    ]


def more_exchanges(description, rng, *, drawn=12, asked=6, words=8):
    """More (prompt, answer) pairs about a described scene, for a long training of a VLM: about `drawn + asked`.

    `drawn` are in every style that the brain knows (`language.exchange`), without answers of more than `words` words;
    `asked` are short questions, as many of each type.
    """
    scene = read_boxes(description)
    candidates = questions(scene, rng)
    found = [exchange(scene, rng, candidates) for _ in range(drawn)]
    kinds = sorted({kind for *_, kind in candidates})
    for number in range(asked):
        same = [row for row in candidates if row[2] == kinds[number % len(kinds)]]
        question, answer, _ = _pick(rng, same)
        found.append((short_prompt(question), answer))
    return [(prompt, answer) for prompt, answer in found if len(answer.split()) <= words]


def as_pairs(messages, prompt=chat_prompt, later=None):
    """A conversation of the common format -> [(prompt, reply), ...] for `build_text_batch`. UserError out of turn.

    `prompt` makes the first turn's prompt of what the user says, and `later`, by default the same, the others'.
    """
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(
            f"the roles of a conversation are {roles}; expected user and assistant in turn."
        )
    texts = [message["content"] for message in messages]
    return [
        ((later or prompt)(ask) if turn else prompt(ask), reply)
        for turn, (ask, reply) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]


# ---------------------------------------------------------------- is it followed?

_NOUNS = {plural(name, 2): name for name in SHAPES}
_FACTS = {*SHAPES, *COLOURS, *SIZES, *"0123456789"}
_FACTS |= set("yes no not top bottom left right above below".split())
_SHAPE_OF = {
    "word": r"[\w-]+\.?",
    "sentence": r"[^.:]+ (?:is|are) [^.:]+\.",
    "list": r"\w+ \w+(?:, \w+ \w+)*\.?",
    "detail": r"(?:there is [^.:]+\. ?)+",
    "reason": r"\d ?: [^.:]+\.",
}


def has_form(reply, form):
    """Whether a reply has the form asked for, whatever it says."""
    return re.fullmatch(_SHAPE_OF[form], reply.strip()) is not None


def facts(text):
    """The facts a text states, counted: sizes, colours, shapes, numbers, places, yes and no. Wording drops out."""
    words = (_NOUNS.get(word, word) for word in re.findall(r"\w+", text.lower()))
    return Counter(word for word in words if word in _FACTS)


def follows(reply, expected, form):
    """1.0 where the reply has the form asked for and states the facts of the expected one, no more and no less."""
    return float(has_form(reply, form) and facts(reply) == facts(expected))


def instruction_set(captions, count, seed=0):
    """`count` single instructions about the images of a captions table: (image's row, instruction, reply, form)."""
    rows, descriptions = [], captions["description"][:]
    for index, description in enumerate(descriptions):
        chosen = turns(read_boxes(description), np.random.default_rng([seed, 4, index]))
        rows += [(index, *turn) for turn in chosen[: -(-count // len(descriptions))]]
    return rows[:count]


def concreteness(texts, descriptions):
    """Two arrays (N,): the share of its image's objects that a text names, and of those that the text before it names.

    An object is named by its colour and shape, or as a digit.
    """
    names = [[_name(i, i.size) for i in read_boxes(text).items] for text in descriptions]
    return [
        np.array([np.mean([n in t for n in own]) for t, own in zip(said, names, strict=True)])
        for said in (texts, [*texts[-1:], *texts[:-1]])
    ]


def stage_talks(data, seed=0, exchanged=0.0):
    """What LLaVA's stages read of an EncodedDataset: {name: N lists of conversations, lists of (prompt, answer)}.

    Every second question has the response-format prompt. exchanged: the share of captions that are another image's.
    """
    captions, asked = [five[0] for five in data.captions], {image_id: [] for image_id in data.ids}
    count = round(exchanged * len(captions))
    captions[:count] = captions[count - 1 : count] + captions[: max(0, count - 1)]
    columns = (data.questions[name][:] for name in ("image_id", "question", "answer"))
    for image_id, question, answer in zip(*columns, strict=True):
        ask = (brief_prompt, short_prompt)[len(asked[image_id]) % 2]
        asked[image_id].append([(ask(question), answer)])
    found = {
        "captions": [[[(CAPTION_PROMPT, text)]] for text in captions],
        "conversation": [
            [as_pairs(conversation(text, np.random.default_rng([seed, 2, k])))]
            for k, text in enumerate(data.descriptions)
        ],
        "VQA": list(asked.values()),
    }
    return found | {"mixed": [sum(each, []) for each in zip(*found.values(), strict=True)]}


def truth_of(prompt, description, captions):
    """(truth, reply -> bool) of a fixed prompt about a described image: the same facts, in the form asked for."""
    scene = read_boxes(description)
    if prompt == CAPTION_PROMPT:
        right = [facts(text) for text in captions]
        return captions[0], lambda reply: facts(reply) in right
    form = "detail" if "detail" in prompt else "list"
    if form == "detail" or "list the" in prompt:
        found = {name: reply for _, reply, name in turns(scene, np.random.default_rng(0))}
        return found[form], lambda reply: bool(follows(reply, found[form], form))
    count = "how many shapes" in prompt
    truth = str(len(scene.shapes)) if count else "yes" if scene.digit else "no"
    word = any(sign in prompt for sign in (ONE_WORD, "answer:"))
    return (
        truth,
        lambda reply: facts(reply) == facts(truth) and (not word or has_form(reply, "word")),
    )


def ask_fixed(model, data):
    """The fixed prompts of data/prompts about images of an EncodedDataset: [(image's row, prompt, truth, reply, right)]."""
    found = []
    for each in read_json(data_path("prompts", "comparison.json"))["prompts"]:
        row, prompt = each["picture"], each["prompt"]
        truth, is_right = truth_of(prompt, data.descriptions[row], data.captions[row])
        reply = model.generate(data.features[[row]].float(), [prompt], 64)[0]
        found.append((row, prompt, truth, reply, is_right(reply)))
    return found


def ask_instructions(model, data, count):
    """Two lists of up to `count` scores in 0..1, of form and of following, of `instruction_set`'s replies."""
    asked = instruction_set({"description": data.descriptions}, count)
    rows, orders, expected, forms = zip(*asked, strict=True)
    prompts = [chat_prompt(order) for order in orders]
    replies = model.generate(data.features[list(rows)].float(), prompts, 64)
    judged = list(zip(replies, expected, forms, strict=True))
    return [float(has_form(r, f)) for r, _, f in judged], [follows(*each) for each in judged]


def reading_rows(count, seed=7):
    """`count` texts as the language model was trained on: a scene in words before the first of five prompts."""
    documents = (document(any_scene, np.random.default_rng([seed, 9, k]), 5) for k in range(count))
    return [[(f"{text} {talk[0][0]}".strip(), talk[0][1]), *talk[1:]] for text, talk in documents]
