"""The checks of notebook 07: the parts of Flamingo and CogVLM that let a language model see.

A known mistake is the lesson's own code with an edit (what stands there, what instead), given the same inputs.
"""

import inspect

import torch
from torch import nn
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from vlm_lite.labs.core import (
    close,
    exercise,
    explain,
    random_weights,
    same_outputs,
    same_values,
    shape_problem,
    with_weights_of,
)
from vlm_lite.lessons import fusion as lesson


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
        if problem := shape_problem(found, right.shape):
            hint = next((said for said in mistakes if said.startswith("the shape")), None)
            return f"{problem}: {hint}" if hint else problem
        if close(found, right):
            return None
        values = {said: [run(_edited(reference, edits))] for said, edits in mistakes.items()}
    return explain(found, values, right)


def _judge_module(learner, reference, sizes, call, mistakes):
    """The same for modules built with `sizes`, which all get the same random weights; call(module) is compared."""
    base = random_weights(reference(*sizes))
    problem = with_weights_of(learner, base, *sizes)[1]

    def run(module):
        return call(with_weights_of(module, base, *sizes)[0])

    return problem or _judge(learner, reference, run, mistakes)


@exercise(lesson.PerceiverAttention)
def PerceiverAttention(learner):
    """Four latents and seven image vectors, random weights: who asks, what is read, and how it is normalised."""
    context, latents = torch.randn(2, 7, 12) + 1, torch.randn(2, 4, 12) - 1
    mistakes = {
        "keys and values come from the image alone; here they come from image and latents together": (
            *("torch.cat([context, latents], dim=1)", "context"),
        ),
        "keys and values come from the latents alone: the image is not read": (
            *("torch.cat([context, latents], dim=1)", "latents"),
        ),
        "the image vectors are not normalised": ("self.context_layer_norm(context)", "context"),
        "the latents are not normalised": ("self.latents_layer_norm(latents)", "latents"),
        "the two norms are exchanged: each has its own weights": (
            *("self.context_layer_norm", "self.OTHER", "self.latents_layer_norm"),
            *("self.context_layer_norm", "self.OTHER", "self.latents_layer_norm"),
        ),
        "the sum with the latents belongs to the resampler, not in here": (
            *("        context, latents =", "        old = latents\n        context, latents ="),
            *("return self.output_proj(", "return old + self.output_proj("),
        ),
        "output_proj is missing": ("self.output_proj(merge_heads(attend(q, k, v)))", "merge_heads(attend(q, k, v))"),
        "keys and values are exchanged": ("attend(q, k, v)", "attend(q, v, k)"),
    }  # fmt: skip
    call = lambda part: part(context.clone(), latents.clone())  # noqa: E731
    return _judge_module(learner, lesson.PerceiverAttention, (12, 3), call, mistakes)


@exercise(lesson.PerceiverResampler)
def PerceiverResampler(learner):
    """Two layers, three latents and five image vectors, random weights: the sums, the order, the last norm."""
    context, summed = torch.randn(2, 5, 8), "latents + attention(context, latents)"
    mistakes = {
        "the attention's result replaces the latents; it is added": (
            *(summed, "attention(context, latents)"),
        ),
        "the MLP's result replaces the latents; it is added": ("latents + mlp(", "mlp("),
        "the last layer_norm is missing": ("self.layer_norm(latents)", "latents"),
        "only the first block is used": ("in self.blocks", "in self.blocks[:1]"),
        "the image and the latents are exchanged: attention(context, latents)": (
            *(summed, "latents + attention(latents, context)[:, : latents.shape[1]]"),
        ),
    }
    sizes = 8, 3, 2, 2
    call = lambda part: part(context.clone())  # noqa: E731
    return _judge_module(learner, lesson.PerceiverResampler, sizes, call, mistakes)


@exercise(lesson.last_image_mask)
def last_image_mask(learner):
    """Two rows, two images of three vectors each: text before any image, after the first, and after the second."""
    ids = torch.randint(10, 99, (2, 9))
    ids[0, [2, 5]] = ids[1, [0, 7]] = 7
    compare = "last[:, :, None] == number"
    mistakes = {
        "after the second image the first is read too: only the last one before a position counts": (
            *(compare, "last[:, :, None] >= number"),
        ),
        "every position reads every image": (compare, "(last[:, :, None] >= 0) & (number > 0)"),
        "an image token reads its own image: count it, too": (
            *(".cumsum(dim=1)", ".cumsum(dim=1) - (ids == image_id).long()"),
        ),
        "the text before the first image reads that image; it reads none": (
            *(compare, "last[:, :, None].clamp(min=1) == number"),
        ),
        "the vectors of an image stand together: repeat_interleave, not repeat": (
            *("repeat_interleave(per_image)", "repeat(per_image)"),
        ),
        "images are counted along the batch; count along the text, dim=1": (
            *("cumsum(dim=1)", "cumsum(dim=0)"),
        ),
    }
    return _judge(
        *(learner, lesson.last_image_mask, lambda f: f(ids.clone(), 7, 2, 3) * 1, mistakes)
    )


@exercise(lesson.MediaAttention)
def MediaAttention(learner):
    """Five positions of text and six vectors of an image: all of it, then a mask that leaves two positions nothing."""
    x, media, reads = torch.randn(2, 5, 8), torch.randn(2, 6, 4), torch.rand(2, 5, 6) > 0.5
    reads[:, :2], reads[:, 2:, 0] = False, True
    mistakes = {
        "`reads` is not used": ("if reads is None", "if True"),
        "positions that may read nothing get the mean of everything; they get 0": (" * some", ""),
        "the mask is upside down: True is where a position may look": (
            *("(reads | ~some)", "(~reads | ~some)"),
        ),
        "o_proj is missing": ("return self.o_proj(", "return ("),
        "keys and values are exchanged": ("attend(q, k, v", "attend(q, v, k"),
    }

    def call(part, *mask):
        return part(x.clone(), media, *mask)

    for mask in ((), (reads,)):
        run = lambda part, mask=mask: call(part, *mask)  # noqa: E731
        known = mistakes if mask else dict(list(mistakes.items())[-2:])
        if problem := _judge_module(learner, lesson.MediaAttention, (8, 4, 2), run, known):
            return problem if mask else f"without a mask: {problem}"


ATTEND, DENSE = "self.alpha_cross_attn.tanh()", "self.alpha_dense.tanh()"


@exercise(lesson.GatedCrossAttention)
def GatedCrossAttention(learner):
    """Five positions of text and six of an image, random gates and weights, two of the text without an image."""
    x, media, reads = torch.randn(2, 5, 8), torch.randn(2, 6, 4), torch.rand(2, 5, 6) > 0.5
    reads[:, :2] = False
    mistakes = {
        "the gates are used as they are; they go through tanh": (
            *(ATTEND, "self.alpha_cross_attn", DENSE, "self.alpha_dense"),
        ),
        "that is a sigmoid, which is 0.5 at 0: tanh, so that a gate of 0 is closed": (
            *(ATTEND, "self.alpha_cross_attn.sigmoid()", DENSE, "self.alpha_dense.sigmoid()"),
        ),
        "the attention has no gate": (f"{ATTEND} * ", ""),
        "the MLP has no gate": (f"{DENSE} * ", ""),
        "the two gates are exchanged": (ATTEND, "GATE", DENSE, ATTEND, "GATE", DENSE),
        "the attention's result replaces x; it is added to it": (f"x = x + {ATTEND}", f"x = {ATTEND}"),
        "the MLP's result replaces x; it is added to it": (f"return x + {DENSE}", f"return {DENSE}"),
        "`reads` is not handed on": ("media, reads)\n", "media)\n"),
        "the attention reads x as it is: input_layernorm comes first": (
            *("self.input_layernorm(x)", "x"),
        ),
        "the MLP reads x as it is: post_attention_layernorm comes first": (
            *("self.post_attention_layernorm(x)", "x"),
        ),
        "the MLP reads the x from before the attention; it reads the sum": (
            *("        x = x +", "        old, x = x, x +"),
            *("self.post_attention_layernorm(x)", "self.post_attention_layernorm(old)"),
        ),
    }  # fmt: skip

    def call(part):
        part.alpha_cross_attn.data.fill_(0.9)  # so far from 0 that tanh shows
        part.alpha_dense.data.fill_(-1.3)
        return part(x.clone(), media, reads)

    return _judge_module(learner, lesson.GatedCrossAttention, (8, 4, 2, 12), call, mistakes)


class _Counted(nn.Linear):
    rows = 0

    def forward(self, x):
        self.rows += x.numel() // x.shape[-1]
        return super().forward(x)


@exercise(lesson.VisualExpert)
def VisualExpert(learner):
    """Rows with two and three image positions, an expert that has left its copy, then text alone and what is trained."""
    x, at_image = torch.randn(2, 6, 5), torch.zeros(2, 6).bool()
    at_image[0, :2] = at_image[1, 1:4] = True
    frozen, other = _Counted(5, 7).requires_grad_(False), torch.randn(7, 5)

    def built(part):
        made = part(frozen)
        made.at_image = at_image
        return made

    made = built(learner)
    if made.expert is made.frozen or made.expert.weight.data_ptr() == frozen.weight.data_ptr():
        return "the expert is the frozen part itself: make a copy"
    trains = [name for name, p in made.named_parameters() if p.requires_grad]
    if trains != ["expert.weight", "expert.bias"]:
        return f"trained are {trains}; expected the expert's parameters alone"

    def run(part):
        made = built(part)
        made.expert.weight.data.copy_(other)
        return made(x.clone())

    put = "out.masked_scatter(at_image[..., None], self.expert(x[at_image]).type_as(out))"
    mistakes = {
        "expert and frozen part are exchanged: the expert is for image positions": (
            *(put, "torch.where(at_image[..., None], out, self.expert(x))"),
        ),
        "the expert is used for text, too": (put, "self.expert(x)"),
        "the expert is not used": (put, "out"),
        "the two are added at image positions; there the expert stands alone": (
            *(put, "out + at_image[..., None] * self.expert(x)"),
        ),
        "the expert gets 0 where the text is, and its bias reaches the text": (
            *(put, "out * ~at_image[..., None] + self.expert(x * at_image[..., None])"),
        ),
    }
    if problem := _judge(learner, lesson.VisualExpert, run, mistakes):
        return problem
    made.expert.rows, made.at_image = 0, at_image
    made(x)
    if made.expert.rows > 5:
        return f"right, but the expert computes {made.expert.rows} positions; 5 are the image's"
    made.at_image = None
    made.expert.weight.data.copy_(other)  # no copy any more
    return None if torch.equal(made(x), frozen(x)) else "without an image use the frozen part"


@torch.no_grad()
def same_as_idefics(part, last_image_mask=None):
    """Copy the weights of transformers' part of that kind into a small one, and prove that both give the same.

    part: a PerceiverResampler; or a GatedCrossAttention, given texts with two images and the mask of who reads which.
    AssertionError where the outputs differ.
    """
    config = IdeficsConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64)
    config.vision_config.embed_dim, config._attn_implementation = 24, "eager"
    config.perceiver_config.qk_layer_norms_perceiver = False
    if last_image_mask is None:
        theirs = IdeficsPerceiverResampler(config, 24, 2, 4, 6, 5)
        return same_outputs(part(24, 5, 2, 4), theirs, torch.randn(2, 9, 24))
    theirs = random_weights(IdeficsGatedCrossAttentionLayer(config, layer_idx=0))
    mine = part(32, 24, 4, 64).eval()
    mine.load_state_dict({k: v for k, v in theirs.state_dict().items() if "rotary" not in k})
    ids = torch.tensor([[3, 9, 4, 5, 9, 6, 7, 8], [9, 1, 2, 3, 4, 5, 9, 6]])  # 9 marks an image
    reads, x, media = last_image_mask(ids, 9, 2, 5), torch.randn(2, 8, 32), torch.randn(2, 10, 24)
    some = reads.any(dim=2)  # theirs takes a bias, and a gate that closes where there is no image
    bias = torch.zeros(2, 1, 8, 10).masked_fill(~(reads | ~some[..., None])[:, None], -1e9)
    right = theirs(x, None, media, bias, some.float())
    same_values("equals IdeficsGatedCrossAttentionLayer: ", mine(x, media, reads), right)
