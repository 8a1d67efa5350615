"""The answers to notebook 04's exercises that are kept: right ones written in other ways, and wrong ones."""

import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite.labs import check

# ---- mlp_projector


def as_modules(x, w1, b1, w2, b2):
    net = nn.Sequential(nn.Linear(*w1.shape[::-1]), nn.GELU(), nn.Linear(*w2.shape[::-1]))
    for parameter, value in zip(net.parameters(), (w1, b1, w2, b2), strict=True):
        parameter.data = value
    return net(x)


def two_layers(act=F.gelu, end=lambda x: x, bias=(1, 1)):
    return lambda x, w1, b1, w2, b2: end(act(x @ w1.T + bias[0] * b1) @ w2.T + bias[1] * b2)


# ---- insert_image


def by_loop(embeds, ids, image, image_id):
    rows = []
    for vector, token in zip(embeds, ids.tolist(), strict=True):
        rows += list(image) if token == image_id else [vector]
    return torch.stack(rows)


def place_of(ids, image_id):
    return ids.tolist().index(image_id)


def inserting(before=0, after=1, pool=False):
    def insert(embeds, ids, image, image_id):
        k = place_of(ids, image_id)
        image = image.mean(0, keepdim=True) if pool else image
        return torch.cat([embeds[: k + before], image, embeds[k + after :]])

    return insert


def in_front(embeds, ids, image, image_id):
    return torch.cat([image, embeds[ids != image_id]])


def behind(embeds, ids, image, image_id):
    return torch.cat([embeds[ids != image_id], image])


def cut(embeds, ids, image, image_id):
    return torch.cat([embeds[: place_of(ids, image_id)], image])


# ---- chat_text


def by_join(messages, eos):
    parts = []
    for message in messages:
        parts += [f"<{message['role']}>", message["content"]] + [eos] * (
            message["role"] == "assistant"
        )
    return " ".join(parts + ["<assistant>"] * (messages[-1]["role"] == "user"))


def chatting(
    user_eos=False,
    eos_at=lambda k, n: True,
    open_end=lambda last: last == "user",
    last_only=False,
    names=("<user>", "<assistant>"),
    space=" ",
):
    def chat(messages, eos):
        messages = messages[-1:] if last_only else messages
        parts = []
        for k, message in enumerate(messages):
            own = message["role"] == "assistant"
            parts += [names[own], message["content"]]
            parts += [eos] if (own and eos_at(k, len(messages))) or (user_eos and not own) else []
        return space.join(parts + [names[1]] * open_end(messages[-1]["role"]))

    return chat


# ---- conversation_labels


def labels_by_lists(turns, eos):
    ids = [i for prompt, answer in turns for i in [*prompt, *answer, eos]]
    counts = [
        c for prompt, answer in turns for c in [False] * len(prompt) + [True] * (len(answer) + 1)
    ]
    return torch.tensor(ids), torch.where(torch.tensor(counts), torch.tensor(ids), -100)


def relabelled(change):
    def label(turns, eos):
        ids, labels = (part.tolist() for part in labels_by_lists(turns, eos))
        return ids, change(ids, labels, turns, eos)

    return label


def last_only(ids, labels, turns, eos):
    tail = len(turns[-1][1]) + 1
    return [-100] * (len(ids) - tail) + labels[-tail:]


def prompts_first(turns, eos):
    ids = [i for prompt, _ in turns for i in prompt] + [
        i for _, answer in turns for i in [*answer, eos]
    ]
    return ids, ids


def one_eos(turns, eos):
    ids = [i for prompt, answer in turns for i in [*prompt, *answer]] + [eos]
    return ids, ids


def eos_after_prompts(turns, eos):
    ids = [i for prompt, answer in turns for i in [*prompt, eos, *answer, eos]]
    return ids, ids


# ---- lora_linear


def merged(x, weight, bias, a, b, alpha):
    return F.linear(x, (weight.T + alpha / a.shape[0] * b @ a), bias)


def lora(scale=lambda alpha, r: alpha / r, base=1, low=1, bias=1, whole=1):
    return lambda x, w, c, a, b, alpha: (
        whole * (base * (x @ w + bias * c) + low * scale(alpha, len(a)) * (x @ a.T @ b.T))
    )


RIGHT = [
    (check.mlp_projector, as_modules),
    (check.mlp_projector, two_layers()),
    (check.insert_image, by_loop),
    (check.insert_image, inserting()),
    (check.chat_text, by_join),
    (check.chat_text, chatting()),
    (check.conversation_labels, labels_by_lists),
    (check.lora_linear, merged),
    (check.lora_linear, lora()),
]
WRONG = [
    (check.mlp_projector, two_layers(act=lambda x: x), "two linear maps are one"),
    (check.mlp_projector, two_layers(act=F.relu), "ReLU"),
    (check.mlp_projector, two_layers(act=lambda x: F.gelu(x, approximate="tanh")), "tanh"),
    (check.mlp_projector, two_layers(end=F.gelu), "after the second layer"),
    (check.mlp_projector, two_layers(bias=(0, 0)), "biases are missing"),
    (
        check.mlp_projector,
        lambda x, w1, b1, w2, b2: F.gelu(x @ w1.T + b1) @ w2 + b2,
        "turned round",
    ),
    (check.mlp_projector, two_layers(act=F.silu), "not Linear, GELU, Linear"),
    (check.insert_image, inserting(before=0, after=0), "*replaced*"),
    (check.insert_image, inserting(before=1, after=1), "*replaced*"),
    (check.insert_image, in_front, "in front of everything"),
    (check.insert_image, behind, "behind everything"),
    (check.insert_image, cut, "is lost"),
    (check.insert_image, inserting(after=4), "are lost"),
    (check.insert_image, inserting(pool=True), "averaged into one"),
    (check.insert_image, lambda e, i, image, k: image, "shape"),
    (check.chat_text, chatting(open_end=lambda last: False), "the text ends there"),
    (check.chat_text, chatting(open_end=lambda last: True), "the conversation is over"),
    (check.chat_text, chatting(eos_at=lambda k, n: False), "has no EOS"),
    (check.chat_text, chatting(eos_at=lambda k, n: k == n - 1), "in the middle has no EOS"),
    (check.chat_text, chatting(user_eos=True), "after a user's turn"),
    (check.chat_text, chatting(last_only=True), "earlier turns are gone"),
    (check.chat_text, chatting(names=("user:", "assistant:")), "who speaks"),
    (check.chat_text, chatting(space="\n"), "the spaces are not"),
    (check.chat_text, lambda messages, eos: str(messages), "under 'content'"),
    (check.conversation_labels, relabelled(last_only), "only the last answer"),
    (
        check.conversation_labels,
        relabelled(lambda ids, labels, *_: ids),
        "ask the user's questions",
    ),
    (
        check.conversation_labels,
        relabelled(
            lambda ids, labels, turns, eos: [-100 if label == eos else label for label in labels]
        ),
        "never told to stop",
    ),
    (check.conversation_labels, relabelled(lambda ids, labels, *_: labels[1:] + [-100]), "shifted"),
    (
        check.conversation_labels,
        relabelled(
            lambda ids, labels, *_: [
                i if label == -100 else -100 for i, label in zip(ids, labels, strict=True)
            ]
        ),
        "turned round",
    ),
    (
        check.conversation_labels,
        relabelled(lambda ids, labels, *_: [max(label, 0) for label in labels]),
        "label -100",
    ),
    (check.conversation_labels, relabelled(lambda ids, labels, *_: labels[:-1]), "one each"),
    (check.conversation_labels, prompts_first, "all prompts come first"),
    (check.conversation_labels, one_eos, "after each *answer*"),
    (check.conversation_labels, eos_after_prompts, "after each *answer*"),
    (check.conversation_labels, lambda turns, eos: [1, 2, 3], "two lists"),
    (check.lora_linear, lora(low=0), "the frozen layer alone"),
    (check.lora_linear, lora(base=0), "LoRA's part alone"),
    (check.lora_linear, lora(scale=lambda alpha, r: 1), "not scaled"),
    (check.lora_linear, lora(scale=lambda alpha, r: alpha), "alpha alone"),
    (check.lora_linear, lora(scale=lambda alpha, r: r / alpha), "it is alpha / r"),
    (check.lora_linear, lora(scale=lambda alpha, r: alpha / 6), "instead of the rank"),
    (check.lora_linear, lora(bias=0), "bias is missing"),
    (check.lora_linear, lora(scale=lambda alpha, r: 1, whole=4), "frozen layer too"),
    (check.lora_linear, lora(scale=lambda alpha, r: alpha / r**2), "is not x W"),
]
