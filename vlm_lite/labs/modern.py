"""The checks of notebook 09: the parts of a modern VLM, from RMSNorm to generation with a KV cache.

A known mistake is the lesson's own code with an edit (what stands there, what instead): where the learner's result
equals what an edited part gives on the same inputs and weights, that mistake is named.
"""

import inspect
from types import SimpleNamespace

import torch
from torch import nn

from vlm_lite.labs.core import (
    close,
    exercise,
    explain,
    generic,
    random_weights,
    shape_problem,
    with_weights_of,
)
from vlm_lite.lessons import modern as lesson


def _edited(reference, edits):
    source, names = inspect.getsource(reference), dict(vars(lesson))
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in source, f"{reference.__name__} has no {old!r}"
        source = source.replace(old, new)
    exec(source, names)
    return names[reference.__name__]


def _judge(learner, reference, run, mistakes):
    """None where run(learner) is run(reference); else the diagnosis in {diagnosis: edits}, or what differs."""
    with torch.no_grad():
        right, found = run(reference), run(learner)
        if not isinstance(found, torch.Tensor):
            return shape_problem(found, right.shape)
        if close(found, right):
            return None
        values = {said: [run(_edited(reference, edits))] for said, edits in mistakes.items()}
    return explain(found, values) or shape_problem(found, right.shape) or generic(found, right)


def _judge_module(learner, reference, sizes, call, mistakes):
    """The same for modules built with `sizes`, which all get the same random weights; call(module) is compared."""
    base = random_weights(reference(*sizes))
    problem = with_weights_of(learner, base, *sizes)[1]

    def run(module):
        return call(with_weights_of(module, base, *sizes)[0])

    return problem or _judge(learner, reference, run, mistakes)


MEAN = "wide = x.float()", "wide = x.float() - x.float().mean(dim=-1, keepdim=True)"


@exercise(lesson.RMSNorm)
def RMSNorm(learner):
    """Random vectors whose mean isn't 0, a random weight, and an eps so large that it counts."""
    x = torch.randn(2, 5, 12) + 1
    mistakes = {
        "you subtract the mean first: that is LayerNorm; RMSNorm only divides": MEAN,
        "eps is missing: a vector of zeros would divide by zero": (" + self.eps", ""),
        "eps belongs under the root": (" + self.eps)", ") / (1 + self.eps)"),
        "the learnt weight is missing": ("self.weight * ", ""),
        "you add up the squares; take their mean": (".mean(dim=-1", ".sum(dim=-1"),
        "you divide by the mean square itself; take its root": (".rsqrt(", ".reciprocal("),
        "you average over the positions; each vector is normalised by itself: dim=-1": (
            *("dim=-1", "dim=-2"),
        ),
    }
    return _judge_module(learner, lesson.RMSNorm, (12, 0.3), lambda norm: norm(x), mistakes)


@exercise(lesson.SwiGLU)
def SwiGLU(learner):
    """Random vectors through three random matrices: which is the gate, its activation, the product."""
    x, gate = torch.randn(2, 5, 8), "F.silu(self.gate_proj(x))"
    mistakes = {
        "gate and up are exchanged: SiLU belongs to gate_proj": (
            *("gate_proj(x)", "UP(x)", "up_proj(x)", "gate_proj(x)", "UP(x)", "up_proj(x)"),
        ),
        "that is GELU; SwiGLU's gate has SiLU, x · sigmoid(x)": ("F.silu", "F.gelu"),
        "that is a sigmoid, as in the older GLU; SiLU is x · sigmoid(x)": (
            *("F.silu", "torch.sigmoid"),
        ),
        "the gate has no activation: SiLU": (gate, "self.gate_proj(x)"),
        "gate and up are added; they are multiplied, channel by channel": (" * ", " + "),
        "up_proj is not used": (" * self.up_proj(x)", ""),
        "down_proj is missing": ("self.down_proj(", "("),
    }
    return _judge_module(learner, lesson.SwiGLU, (8, 12), lambda part: part(x), mistakes)


def _rope(length):
    return lesson.rope_tables(torch.arange(length).expand(2, -1) + 3, 8, 100.0)


TURNED = "torch.cat([-second, first], dim=-1)"


@exercise(lesson.apply_rope)
def apply_rope(learner):
    """Random queries of three heads at positions from 3 on: which numbers form a pair, and which way it turns."""
    x, tables = torch.randn(2, 3, 5, 8), _rope(5)
    mistakes = {
        "each number is multiplied by cos and sin on its own: a rotation mixes the two of a pair": (
            *(TURNED, "x"),
        ),
        "your pairs are neighbours, (0, 1), (2, 3); Llama pairs i with i + h / 2: take the two halves": (
            *("x.chunk(2, dim=-1)", "(x[..., ::2], x[..., 1::2])"),
            *(TURNED, "torch.stack([-second, first], dim=-1).flatten(-2)"),
        ),
        "it turns the wrong way: the minus belongs to the second half, which comes first": (
            *("[-second, first]", "[second, -first]"),
        ),
        "the minus is missing: without it lengths change": ("[-second", "[second"),
        "the halves are not exchanged: what sin multiplies is (-second, first)": (
            *("[-second, first]", "[-first, second]"),
        ),
        "cos and sin are exchanged": ("cos +", "SIN +", "* sin", "* cos", "SIN", "sin"),
    }
    return _judge(learner, lesson.apply_rope, lambda turn: turn(x.clone(), *tables), mistakes)


@exercise(lesson.GroupedQueryAttention)
def GroupedQueryAttention(learner):
    """Four heads of queries, two of keys and values: five positions at once, then three and two more with a cache."""
    sizes, x, tables = (16, 4, 2, 8), torch.randn(2, 5, 16), _rope(5)
    reads, reference = torch.ones(2, 1, 5, 5).tril().bool(), lesson.GroupedQueryAttention
    problem = _judge_module(
        learner,
        reference,
        sizes,
        lambda part: part(x, tables, reads)[0],
        {
            "the keys are not turned: RoPE belongs to queries and keys": (
                *("apply_rope(k, *rope)", "k"),
            ),
            "nothing is turned: queries and keys go through apply_rope": (
                *("apply_rope(q, *rope), apply_rope(k, *rope)", "q, k"),
            ),
            "the values are turned too: RoPE belongs to queries and keys alone": (
                *("        if past", "        v = apply_rope(v, *rope)\n        if past"),
            ),
            "heads 0 and 1 of the queries share the first head of keys: repeat_interleave, not repeat": (
                *("repeat_interleave(share, dim=1)", "repeat(1, share, 1, 1)"),
            ),
            "the mask `reads` is not used, so a position reads what comes after it": (
                *("mask=reads", "mask=None"),
            ),
            "you split the heads as (h heads); a head is a run of neighbouring channels": (
                *("(heads h) ->", "(h heads) ->"),
            ),
            "the heads are merged as (h heads); side by side is (heads h)": (
                *("-> b t (heads h)", "-> b t (h heads)"),
            ),
        },
    )
    if problem:
        return problem

    def continued(part):
        kept = part(x[:, :3], [each[:, :, :3] for each in tables], reads[..., :3, :3])[1]
        if problem := shape_problem(kept[0], (2, 2, 3, 8), "the cache: its keys"):
            return problem + " (keep them before the heads are repeated: that is what this saves)"
        last = [each[:, :, 3:] for each in tables]
        return part(x[:, 3:], last, reads[..., 3:, :], kept)[0]

    base = random_weights(reference(*sizes))
    found = continued(with_weights_of(learner, base, *sizes)[0])
    if isinstance(found, str) or close(found, base(x, tables, reads)[0][:, 3:]):
        return found if isinstance(found, str) else None
    return (
        "right without a cache, wrong with one: past keys and values come first, then the new ones"
    )


@exercise(lesson.insert_images)
def insert_images(learner):
    """Two rows with two images in the first and one in the second; then a text with one image token too many."""
    ids, image = torch.randint(10, 99, (2, 9)), torch.randn(3, 2, 4)
    ids[0, [1, 2, 5, 6]] = ids[1, [3, 4]] = 7
    embeds, whole = torch.randn(2, 9, 4), "image_embeds.to(token_embeds.dtype)"
    given = embeds.clone()
    mistakes = {
        "the vector of the image token is still in it: it is *replaced*": (
            *(whole + ")", whole + ") + at_image[..., None] * token_embeds"),
        ),
        "every image token gets the same vector": (
            whole,
            "image_embeds[:1, :1].expand_as(image_embeds)",
        ),
        "the images are in the wrong order: the first goes to the first image tokens": (
            *(whole, "image_embeds.flip(0)"),
        ),
        "the vectors of an image are averaged: each has a position of its own": (
            *(whole, "image_embeds.mean(dim=1, keepdim=True).expand_as(image_embeds)"),
        ),
    }
    problem = _judge(
        *(learner, lesson.insert_images, lambda f: f(given, ids, image.clone(), 7), mistakes)
    )
    if problem or not torch.equal(given, embeds):
        return problem or "you wrote into token_embeds: make a new tensor"
    ids[1, 0] = 7
    try:
        learner(embeds, ids, image, 7)
    except ValueError as error:
        return None if "7" in str(error) and "6" in str(error) else "say both counts in the error"
    except RuntimeError:
        pass
    return "7 image tokens and 6 vectors: raise a ValueError that says both counts"


class _Scripted(nn.Module):
    """A Llama that says what `script` (B, steps) holds, and notes the first thing wrong in how it is called."""

    def __init__(self, script, length):
        super().__init__()
        self.script, self.length, self.step, self.problem = script, length, 0, None
        self.embed_tokens = nn.Embedding(20, 4)

    def forward(self, embeds, attention_mask=None, cache=None):
        step, new = self.step, embeds.shape[1]
        wrong = {
            f"round {step + 1} reads {new} vectors; from the second on it is one, the rest is in the cache": (
                new != (1 if step else self.length)
            ),
            "hand back the cache that the model returned": cache != (step or None),
            f"the mask has {attention_mask.shape[1]} columns for {self.length + step} positions": (
                attention_mask.shape[1] != self.length + step
            ),
        }
        if step and new == 1:
            right = self.embed_tokens(self.script[:, step - 1, None])
            wrong[
                "read next the embedding of the new token, the most probable at the *last* position"
            ] = not close(embeds, right)
        self.problem = self.problem or next((said for said, holds in wrong.items() if holds), None)
        self.step = step + 1
        logits = nn.functional.one_hot(self.script[:, step, None], 20).float()
        return torch.cat([1 - logits.expand(-1, new - 1, -1), logits], dim=1), self.step


@exercise(lesson.generate)
def cached_generate(learner):
    """A scripted Llama that notes how it is called, two rows that end at different steps."""
    script = torch.randint(6, 20, (2, 6))
    script[0, 1] = script[1, 3] = 5
    ids, mask = torch.randint(6, 20, (2, 4)), torch.ones(2, 4).long()
    llama = _Scripted(script, 4)
    model = SimpleNamespace(text_model=llama, embed=lambda ids, images: llama.embed_tokens(ids))
    found = learner(model, ids, mask, None, 6, 5)
    if llama.problem:
        return llama.problem
    if isinstance(found, torch.Tensor) and found.shape != (2, 4):
        return f"it says {found.shape[1]} tokens; both rows have said EOS after 4: note which are finished"
    right = script[:, :4]
    return None if close(found, right) else generic(found, right)
