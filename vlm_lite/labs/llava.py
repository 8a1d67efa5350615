"""The checks of notebook 04: from the projector to the words of a conversation, and LoRA.

Each check first sees whether the learner's result is right; if not, whether it is what a known mistake would give on
the same inputs. Shapes: B rows, N patches, T tokens, D width.
"""

import torch
import torch.nn.functional as F

from vlm_lite.labs.core import close, exercise, explain, shape_problem
from vlm_lite.models.text import IGNORE

USER, ASSISTANT = "<user>", "<assistant>"


# ---- the references


def _mlp_projector(features, w1, b1, w2, b2):
    """features (B, N, Dv); w1 (D, Dv), b1 (D,), w2 (D, D), b2 (D,), as nn.Linear keeps them -> (B, N, D)."""
    return F.linear(F.gelu(F.linear(features, w1, b1)), w2, b2)


def _insert_image(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (T, D) of input_ids (T,), image_embeds (N, D) -> (T-1+N, D): the vectors where `image_id` stood."""
    place = int((input_ids == image_id).nonzero()[0, 0])
    return torch.cat([token_embeds[:place], image_embeds, token_embeds[place + 1 :]])


def _chat_text(messages, eos):
    """[{"role", "content"}, ...] -> the text that the model reads, open for the assistant where a user spoke last."""
    text = "".join(
        f"{USER} {m['content']} " if m["role"] == "user" else f"{ASSISTANT} {m['content']} {eos} "
        for m in messages
    )
    return (text + ASSISTANT if messages[-1]["role"] == "user" else text).strip()


def _conversation_labels(turns, eos):
    """[(prompt ids, answer ids), ...] -> (ids, labels), two lists: -100 on prompts; answers and their EOS count."""
    ids, labels = [], []
    for prompt, answer in turns:
        ids += prompt + answer + [eos]
        labels += [IGNORE] * len(prompt) + answer + [eos]
    return ids, labels


def _lora_linear(x, weight, bias, a, b, alpha):
    """x (B, T, D_in), Conv1D's weight (D_in, D_out) and bias (D_out,), a (r, D_in), b (D_out, r) -> (B, T, D_out)."""
    return x @ weight + bias + alpha / len(a) * (x @ a.T @ b.T)


# ---- the checks


@exercise(_mlp_projector)
def mlp_projector(learner):
    """Random patches through two random layers: the order, the activation, the biases."""
    x = torch.randn(2, 5, 6)
    w1, b1, w2, b2 = torch.randn(9, 6), torch.randn(9), torch.randn(9, 9) / 3, torch.randn(9)
    right = _mlp_projector(x, w1, b1, w2, b2)
    found = learner(x.clone(), w1, b1, w2, b2)
    problem = shape_problem(found, right.shape)
    if problem or close(found, right, 1e-5):
        return problem
    inner = F.linear(x, w1, b1)
    return (
        explain(
            found,
            {
                "there is nothing between the two layers: without a GELU two linear maps are one": [
                    F.linear(inner, w2, b2)
                ],
                "that is ReLU; LLaVA-1.5 has GELU": [F.linear(F.relu(inner), w2, b2)],
                "that is GELU's tanh approximation; nn.GELU() and F.gelu are exact unless told otherwise": [
                    F.linear(F.gelu(inner, approximate="tanh"), w2, b2)
                ],
                "there is a GELU after the second layer too: the last map is linear, so that any vector can come out": [
                    F.gelu(right),
                    F.gelu(F.linear(inner, w2, b2)),
                ],
                "the biases are missing": [
                    F.linear(F.gelu(F.linear(x, w1)), w2),
                    F.linear(F.gelu(inner), w2),
                    F.linear(F.gelu(F.linear(x, w1)), w2, b2),
                ],
                "the second matrix is turned round: nn.Linear keeps (out, in) and computes x Wᵀ": [
                    F.gelu(inner) @ w2 + b2
                ],
            },
        )
        or "your result is not Linear, GELU, Linear: F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)"
    )


@exercise(_insert_image)
def insert_image(learner):
    """Prompts of random length with the special word at the front, in the middle and at the end."""
    for place, length in ((3, 9), (0, 7), (5, 6)):
        image_id, ids = 2, torch.randint(10, 99, (length,))
        ids[place] = image_id
        embeds, image = torch.randn(length, 8), torch.randn(4, 8)
        right = _insert_image(embeds, ids, image, image_id)
        found = learner(embeds.clone(), ids.clone(), image.clone(), image_id)
        if isinstance(found, torch.Tensor) and found.shape == right.shape and close(found, right):
            continue
        rest = torch.cat([embeds[:place], embeds[place + 1 :]])
        message = explain(
            found,
            {
                "the vector of the word <image> itself is still in the row: it is *replaced* by the picture's vectors": [
                    torch.cat([embeds[:place], image, embeds[place:]]),
                    torch.cat([embeds[: place + 1], image, embeds[place + 1 :]]),
                    torch.cat([image, embeds]),
                ],
                "the picture stands in front of everything; it belongs where <image> stood": [
                    torch.cat([image, rest]) if place else right + torch.nan
                ],
                "the picture stands behind everything; it belongs where <image> stood": [
                    torch.cat([rest, image]) if place < length - 1 else right + torch.nan
                ],
                "what stood after <image> is lost": [torch.cat([embeds[:place], image])],
                "the picture took the places of the words that follow, and these are lost: the row grows by N - 1": [
                    torch.cat([embeds[:place], image, embeds[place + 4 :]]),
                    torch.cat([embeds[:place], image, embeds[place + 4 :]])[:length],
                ],
                "the four vectors of the picture are averaged into one: each is a word of its own": [
                    torch.cat([embeds[:place], image.mean(0, keepdim=True), embeds[place + 1 :]])
                ],
            },
        )
        return (
            message
            or shape_problem(found, right.shape)
            or (
                f"with <image> at place {place} of {length} the row is not: what stood before, the picture, what stood "
                "after"
            )
        )
    return None


@exercise(_chat_text)
def chat_text(learner):
    """A question alone, a finished exchange, and two turns of which the second is open."""
    eos = "<eos>"
    ask, say = (
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "a red star."},
    )
    more = {"role": "user", "content": "where is it?"}
    for messages in ([ask], [ask, say], [ask, say, more]):
        right = _chat_text(messages, eos)
        found = learner([dict(message) for message in messages], eos)
        if not isinstance(found, str):
            return f"your result is a {type(found).__name__}; expected one string"
        if " ".join(found.split()) == " ".join(right.split()):
            if found != right:
                return (
                    f"the words are right, the spaces are not: one space between the parts and none at the ends. "
                    f"Expected {right!r}, found {found!r}"
                )
            continue
        plain = " ".join(found.split())
        if "{" in plain or "role" in plain:
            return "the messages themselves are in the text: take what stands under 'content'"
        if any(message["content"] not in plain for message in messages[:-1]):
            return "the earlier turns are gone: the model reads the whole conversation, not the last question alone"
        if messages[-1] is say:
            if plain == f"{right} {ASSISTANT}":
                return "the conversation is over, yet the text ends with <assistant>: add that only after a user's turn"
            if eos not in plain:
                return "the assistant's turn has no EOS: without it in training the model never learns to stop"
        if plain.count(eos) > right.count(eos):
            return "EOS stands after a user's turn as well: only the assistant's turns end with it"
        if plain == right.removesuffix(f" {ASSISTANT}"):
            return (
                "the user spoke last, and the text ends there: add <assistant>, or the model goes on writing the "
                "question"
            )
        if plain.count(eos) < right.count(eos):
            return "an assistant's turn in the middle has no EOS: every one of them ends with it"
        if USER not in plain or ASSISTANT not in plain:
            return f"each turn begins with who speaks: {USER} or {ASSISTANT}"
        return f"for {[m['role'] for m in messages]} the text is {right!r}, not {found!r}"
    return None


@exercise(_conversation_labels)
def conversation_labels(learner):
    """Three turns of different lengths, and one alone: what is read, and what counts."""
    eos = 5
    three = [([11, 12, 13], [21, 22]), ([14, 15], [23]), ([16, 17, 18, 19], [24, 25, 26])]
    for turns in (three, three[:1]):
        result = learner([(list(prompt), list(answer)) for prompt, answer in turns], eos)
        if not isinstance(result, tuple | list) or len(result) != 2:
            return "return two lists, the ids and the labels"
        ids, labels = (torch.as_tensor(part).tolist() for part in result)
        right_ids, right = _conversation_labels(turns, eos)
        if ids == right_ids and labels == right:
            continue
        if ids != right_ids:
            if [i for i in ids if i != eos] == [i for i in right_ids if i != eos]:
                return (
                    "the EOS is not where it belongs: one after each *answer*, because there the assistant stops "
                    "and the user speaks again"
                )
            if len(turns) > 1 and ids == [i for prompt, _ in turns for i in prompt] + [
                i for _, answer in turns for i in [*answer, eos]
            ]:
                return "all prompts come first; a conversation goes prompt, answer, EOS, prompt, answer, EOS"
            return f"for {turns} and EOS {eos} the ids are {right_ids}, not {ids}"
        if len(labels) != len(ids):
            return f"there are {len(labels)} labels for {len(ids)} tokens: one each"
        last = [IGNORE] * (len(ids) - len(turns[-1][1]) - 1) + turns[-1][1] + [eos]
        if labels == last:
            return "only the last answer counts: every turn of the assistant is an example, so label them all"
        if labels == ids:
            return "everything counts, so the model would learn to ask the user's questions: -100 on the prompts"
        if labels == [label if label != eos else IGNORE for label in right]:
            return "the EOS has no label: a model that is never told to stop never does"
        if labels in (right[1:] + [IGNORE], [IGNORE] + right[:-1]):
            return "the labels are shifted by one: the model does that itself"
        if labels == [
            i if label == IGNORE else IGNORE for i, label in zip(ids, right, strict=True)
        ]:
            return "it is turned round: the prompts count and the answers do not"
        if IGNORE not in labels:
            return f"what does not count has the label -100, which the loss leaves out; yours are {labels}"
        return f"for {turns} the labels are {right}, not {labels}"
    return None


@exercise(_lora_linear)
def lora_linear(learner):
    """A Conv1D of GPT-2 that is not square, two low-rank matrices, and a scale."""
    x, weight, bias = torch.randn(2, 5, 6), torch.randn(6, 8), torch.randn(8)
    a, b, alpha = torch.randn(3, 6), torch.randn(8, 3), 12.0
    right = _lora_linear(x, weight, bias, a, b, alpha)
    found = learner(x.clone(), weight, bias, a, b, alpha)
    problem = shape_problem(found, right.shape)
    if problem or close(found, right):
        return problem
    base, low = x @ weight + bias, x @ a.T @ b.T
    return (
        explain(
            found,
            {
                "that is the frozen layer alone: LoRA's part is added to it": [base],
                "that is LoRA's part alone: it is added to what the frozen layer gives": [
                    low,
                    4 * low,
                ],
                "LoRA's part is not scaled: alpha / r, with r the rank, the number of rows of a": [
                    base + low
                ],
                "you scale by alpha alone: divide by the rank, so that another rank needs no other learning rate": [
                    base + alpha * low
                ],
                "you scale by r / alpha; it is alpha / r": [base + len(a) / alpha * low],
                "you divided by the width instead of the rank: r is the number of rows of a": [
                    base + alpha / 6 * low,
                    base + alpha / 8 * low,
                ],
                "the bias is missing": [x @ weight + 4 * low],
                "the scale is on the frozen layer too": [4 * (base + low)],
            },
        )
        or "your result is not x W + bias + (alpha / r) · x aᵀ bᵀ"
    )
