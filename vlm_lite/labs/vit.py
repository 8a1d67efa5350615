"""The checks of notebook 02: patches, multi-head attention, block, forward pass, training step, attention rollout.

Each check first sees whether the learner's result is right; if not, whether it equals what a known mistake would give
on the same inputs and weights. The references are the notebook's own solutions, exported to `vlm_lite.lessons.vit`.
Shapes: B images, N tokens of width D, H heads of width h = D / H.
"""

import contextlib
import copy
import warnings

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.labs.core import (
    close,
    exercise,
    explain,
    random_weights,
    shape_problem,
    with_weights_of,
)
from vlm_lite.lessons import vit as lesson


@exercise(lesson.patchify)
def patchify(learner):
    """Two random images of 12 pixels a side, cut into patches of 4."""
    images, p = torch.randn(2, 3, 12, 12), 4
    right = lesson.patchify(images, p)  # (2, 9, 48)
    found = learner(images.clone(), p)
    if isinstance(found, torch.Tensor) and found.ndim > 3:
        return (
            f"your result has shape {tuple(found.shape)}: put the axes of the grid together to one of "
            "N = rows x columns, and those of a patch to one of C·p·p"
        )
    if problem := shape_problem(found, right.shape):
        return problem
    if close(found, right):
        other = torch.randn(1, 1, 6, 6)
        return (
            None
            if close(learner(other.clone(), 2), lesson.patchify(other, 2))
            else (
                "it is right for colour images of 12 pixels and wrong for grey ones of 6: is a size written as a number?"
            )
        )

    def order(pattern):
        return rearrange(images, f"b c (rows p) (columns q) -> {pattern}", p=p, q=p)

    return explain(
        found,
        {
            "a bare reshape cuts the image into strips of pixels in memory order, not into squares: split each side into "
            "(rows p) and (columns q) first": [
                images.reshape(2, 9, 48),
                images.permute(0, 2, 3, 1).reshape(2, 9, 48),
            ],
            "the patches are numbered column by column; here they go row by row: (rows columns)": [
                order("b (columns rows) (c p q)")
            ],
            "inside a patch the channels come last, (p q c); a convolution's kernel is (c p q), and its weights would no "
            "longer fit": [order("b (rows columns) (p q c)")],
            "each patch is transposed: (c p q), not (c q p)": [order("b (rows columns) (c q p)")],
            "you took every third pixel: `(p rows)` makes neighbours of pixels that are far apart; write `(rows p)`": [
                rearrange(images, "b c (p rows) (q columns) -> b (rows columns) (c p q)", p=p, q=p)
            ],
        },
        right,
    )


def _attended(
    reference, x, *, order="three heads h", scale=None, dim=-1, merge="heads h", change=None
):
    """(output, weights) of multi-head attention with the weights of `reference`, with one thing done in another way."""
    heads, width = reference.num_heads, x.shape[-1]
    sizes = {"three": 3, "heads": heads}
    q, k, v = rearrange(reference.qkv(x), f"b n ({order}) -> three b heads n h", **sizes)
    if change == "exchanged":
        q, k = k, q
    scores = q @ k.transpose(-2, -1) / ((width // heads) ** 0.5 if scale is None else scale)
    if change == "causal":
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    weights = scores.softmax(dim=dim)
    mixed = (weights.transpose(-2, -1) if change == "transposed" else weights) @ (
        k if change == "keys" else v
    )
    if change == "not merged":
        return reference.proj(mixed.reshape(x.shape)), weights
    mixed = rearrange(mixed, f"b heads n h -> b n ({merge})")
    return mixed if change == "no projection" else reference.proj(mixed), weights


@exercise(lesson.MultiHeadAttention)
def MultiHeadAttention(learner):
    """Random weights and tokens, three heads: the output, and the attention weights kept in `self.weights`."""
    reference, x = random_weights(lesson.MultiHeadAttention(24, 3)), torch.randn(2, 5, 24)
    module, problem = with_weights_of(learner, reference, 24, 3)
    if problem:
        return problem
    with torch.no_grad():
        right, right_weights = reference(x), reference.weights
        found = module(x.clone())
        if found is None:
            return "forward returned None; is the `return` line missing?"
        if problem := shape_problem(found, right.shape):
            return problem
        mistakes = {
            "you left out the division of the scores by √h, where h is the width of one head": {
                "scale": 1
            },
            "you divide the scores by h; divide by its root, √h": {"scale": 8},
            "you divide by the root of the *whole* width D; each head has h = D / H numbers": {
                "scale": 24**0.5
            },
            "your softmax runs over the queries; each row must sum to 1 over the keys: dim=-1": {
                "dim": -2
            },
            "you split the 3D outputs of qkv as (heads, three, h); they are ordered (three, heads, h)": {
                "order": "heads three h"
            },
            "you split the heads as (h, heads); a head is a run of neighbouring numbers: (heads, h)": {
                "order": "three h heads"
            },
            "the heads are merged as (h, heads); side by side is (heads, h)": {"merge": "h heads"},
            "the heads are not side by side: bring the token's axis before the heads', then merge": {
                "change": "not merged"
            },
            "queries and keys are exchanged: row i belongs to query i, so it is q @ kᵀ": {
                "change": "exchanged"
            },
            "your attention is causal; each patch may attend to all": {"change": "causal"},
            "the weights are transposed before they average the values: weights @ v": {
                "change": "transposed"
            },
            "the weights average the keys; they must average the *values* v": {"change": "keys"},
            "the output projection `proj` is missing": {"change": "no projection"},
        }
        if not close(found, right):
            values = {said: [_attended(reference, x, **how)[0]] for said, how in mistakes.items()}
            return explain(found, values, right)
    kept = getattr(module, "weights", None)
    if kept is None:
        return (
            "the output is right, but self.weights is still None: keep the attention weights there"
        )
    if problem := shape_problem(kept, right_weights.shape, "self.weights"):
        return problem
    if not close(kept, right_weights):
        return "the output is right, but self.weights does not hold softmax(q kᵀ / √h)"
    module(x)
    return (
        "detach what you keep in self.weights, or it holds the whole graph"
        if module.weights.requires_grad
        else None
    )


@exercise(lesson.Block)
def Block(learner):
    """Random weights and tokens through one block, large tokens and then tiny ones, for which eps counts."""
    reference, x = random_weights(lesson.Block(24, 3)), 2 * torch.randn(2, 5, 24) + 1
    module, problem = with_weights_of(learner, reference, 24, 3)
    if problem:
        return problem
    attn, mlp, norm1, norm2 = (
        getattr(reference, part) for part in ("attn", "mlp", "norm1", "norm2")
    )
    with torch.no_grad():
        right, found = reference(x), module(x.clone())
        if found is None:
            return "forward returned None; is the `return` line missing?"
        if problem := shape_problem(found, right.shape):
            return problem
        if close(found, right):
            tiny = 1e-3 * x
            same = close(module(tiny.clone()), reference(tiny))
            return None if same else "the LayerNorms have another eps; timm's ViT has eps=1e-6"
        middle, post, first = x + attn(norm1(x)), norm1(x + attn(x)), norm1(x)
        first = first + attn(first)
        second = norm2(first)

        def activated(function):
            return middle + mlp.fc2(function(mlp.fc1(norm2(middle))))

        return explain(
            found,
            {
                "that is *post*-norm, as in the first transformer and in BERT: here the norm comes before each step, and "
                "nothing normalises the sum": [norm2(post + mlp(post))],
                "the residuals are missing: each step is *added* to x": [
                    mlp(norm2(attn(norm1(x)))),
                    mlp(norm2(middle)),
                    attn(norm1(x)) + mlp(norm2(attn(norm1(x)))),
                ],
                "the norms are missing: each step reads a normalised copy of x": [
                    x + attn(x) + mlp(x + attn(x)),
                    middle + mlp(middle),
                    x + attn(x) + mlp(norm2(x + attn(x))),
                ],
                "you normalise x itself; the residual stream stays as it is, and only a *copy* is normalised": [
                    second + mlp(second)
                ],
                "both steps read the same x; the MLP must see what attention has added": [
                    x + attn(norm1(x)) + mlp(norm2(x))
                ],
                "the order is turned: attention first, then the MLP": [
                    x + mlp(norm2(x)) + attn(norm1(x + mlp(norm2(x)))),
                    x + mlp(norm1(x)) + attn(norm2(x + mlp(norm1(x)))),
                ],
                "the second step has a norm of its own, norm2": [middle + mlp(norm1(middle))],
                "the norms are exchanged: norm1 before attention, norm2 before the MLP": [
                    (lambda y: y + mlp(norm1(y)))(x + attn(norm2(x)))
                ],
                "the MLP has no activation between its layers: nn.GELU()": [activated(lambda y: y)],
                "the activation is ReLU; a ViT has nn.GELU()": [activated(F.relu)],
                "the MLP is missing": [middle],
            },
            right,
        )


@exercise(lesson.ViT)
def ViT(learner):
    """Random weights and images of nine patches: all tokens that `forward_features` returns, and the logits."""
    sizes = dict(image_size=12, patch_size=4, width=16, depth=2, num_heads=2, num_classes=3)
    reference, pixels = random_weights(lesson.ViT(**sizes)), torch.randn(2, 3, 12, 12)
    module, problem = with_weights_of(learner, reference, **sizes)
    if problem:
        return problem
    reference.norm_pre = module.norm_pre = nn.LayerNorm(16)  # as in CLIP, so that it counts
    conv, blocks, norm, norm_pre = (
        reference.patch_embed["proj"],
        reference.blocks,
        reference.norm,
        reference.norm_pre,
    )
    with torch.no_grad():
        right, found = reference.forward_features(pixels), module.forward_features(pixels.clone())
        if found is None:
            return "forward_features returned None; is the `return` line missing?"
        if isinstance(found, torch.Tensor) and tuple(found.shape) == (2, 16):
            return "return all tokens, (B, 1+N, D); `forward` takes the class token from them"
        if isinstance(found, torch.Tensor) and tuple(found.shape) == (2, 9, 16):
            return "the class token is missing: put it in front of the N patches"
        if problem := shape_problem(found, right.shape):
            return problem
        cls, place = reference.cls_token.expand(2, -1, -1), reference.pos_embed
        x = F.linear(lesson.patchify(pixels, 4), conv.weight.flatten(1), conv.bias)
        bare = torch.cat([cls, x], dim=1)
        columns = rearrange(conv(pixels), "b d rows columns -> b (columns rows) d")
        mistakes = {
            "the position embedding is missing": [norm(blocks(norm_pre(bare)))],
            "the class token has no position: pos_embed has a row for it as well; add it after torch.cat": [
                norm(blocks(norm_pre(torch.cat([cls, x + place[:, 1:]], dim=1))))
            ],
            "the class token stands last; it must be first, where `forward` reads it": [
                norm(blocks(norm_pre(torch.cat([x, cls], dim=1) + place))),
            ],
            "the positions are added after norm_pre; they come before it": [
                norm(blocks(norm_pre(bare) + place))
            ],
            "the positions are added after the blocks; attention must see them": [
                norm(blocks(norm_pre(bare)) + place)
            ],
            "`norm_pre` is missing: it stands before the blocks": [norm(blocks(bare + place))],
            "the last `norm` is missing": [blocks(norm_pre(bare + place))],
            "the blocks are missing": [norm(norm_pre(bare + place))],
            "only one of the blocks runs": [norm(each(norm_pre(bare + place))) for each in blocks],
            "the patch embedding leaves out its bias": [
                norm(blocks(norm_pre(torch.cat([cls, x - conv.bias], dim=1) + place)))
            ],
            "the patches are numbered column by column; they go row by row": [
                norm(blocks(norm_pre(torch.cat([cls, columns], dim=1) + place)))
            ],
        }
        if not close(found, right):
            return explain(found, mistakes, right)
        if not close(module(pixels), reference(pixels)):
            return "the tokens are right, but `forward` is not the head of the class token; it was given, set it back"
    return None


class _Accelerator:
    """What `training_step` uses of accelerate's, noting what was called."""

    def __init__(self):
        self.inside, self.backwards = False, 0

    @contextlib.contextmanager
    def autocast(self):
        self.inside = True
        yield
        self.inside = False

    def backward(self, loss):
        self.backwards += 1
        loss.backward()

    def clip_grad_norm_(self, parameters, max_norm):
        return nn.utils.clip_grad_norm_(parameters, max_norm)


def _two_steps(step, start, batch):
    """(the losses of two steps, the weights after them, the accelerator, whether the model ran under autocast)."""
    model, accelerator, seen = copy.deepcopy(start), _Accelerator(), []
    model.register_forward_hook(lambda *_: seen.append(accelerator.inside))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.3**step)
    with (
        warnings.catch_warnings()
    ):  # of a schedule without an optimizer step: the diagnosis says more
        warnings.simplefilter("ignore")
        losses = [step(model, *batch, optimizer, schedule, accelerator) for _ in range(2)]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return losses, weights, accelerator, all(seen)


def _step(*, softmax=False, total=False, clip=1.0, zero="last", schedule=True):
    """A training step with one thing done in another way."""

    def step(model, pixels, labels, optimizer, scheduler, accelerator):
        with accelerator.autocast():
            logits = model(pixels)
            logits = logits.softmax(dim=-1) if softmax else logits
            loss = F.cross_entropy(logits, labels, reduction="sum" if total else "mean")
        accelerator.backward(loss)
        if clip:
            accelerator.clip_grad_norm_(model.parameters(), clip)
        if zero == "before the step":
            optimizer.zero_grad()
        optimizer.step()
        if schedule:
            scheduler.step()
        if zero == "last":
            optimizer.zero_grad()
        return loss.detach()

    return step


@exercise(lesson.training_step)
def vit_training_step(learner):
    """Two steps of a linear model on one batch: the losses, the weights after them, and how the accelerator was used."""
    start, batch = (
        nn.Sequential(nn.Flatten(), nn.Linear(48, 3)),
        (5 * torch.randn(8, 3, 4, 4), torch.randint(3, (8,))),
    )
    right_losses, right, *_ = _two_steps(lesson.training_step, start, batch)
    losses, found, accelerator, under_autocast = _two_steps(learner, start, batch)
    for loss in losses:
        if problem := shape_problem(loss, (), "the loss"):
            return problem
    if losses[0].requires_grad:
        return "return loss.detach(): else every loss that is kept holds its whole graph"
    if not accelerator.backwards:
        return "use accelerator.backward(loss): it scales the loss where the precision is fp16"
    if not under_autocast:
        return "the model runs outside `with accelerator.autocast():`, so it never uses the lower precision"
    if not close(losses[0], right_losses[0]):
        values = {
            "cross_entropy takes the *logits*; it has the softmax in it": _step(softmax=True),
            "the loss is a sum over the batch; take the mean": _step(total=True),
        }
        values = {said: [_two_steps(step, start, batch)[0][0]] for said, step in values.items()}
        return explain(losses[0], values, right_losses[0])
    before = torch.cat([p.detach().flatten() for p in start.parameters()])
    if close(found, before, 1e-7):
        return "the weights did not change: optimizer.step() comes after backward and before zero_grad()"
    if close(found, right, 1e-5):
        return None
    mistakes = {
        "gradients add up from step to step: optimizer.zero_grad() is missing": _step(zero="never"),
        "the gradient is not clipped (or only after the step)": _step(clip=None),
        "the learning rate never changes: scheduler.step() is missing": _step(schedule=False),
        "neither zero_grad nor the schedule is there": _step(zero="never", schedule=False),
    }
    values = {said: [_two_steps(step, start, batch)[1]] for said, step in mistakes.items()}
    return explain(found, values, right)


@exercise(lesson.attention_rollout)
def attention_rollout(learner):
    """Three blocks of random attention, two images, four heads."""
    attentions = list((2 * torch.randn(3, 2, 4, 6, 6)).softmax(dim=-1))
    right = lesson.attention_rollout(attentions)
    found = learner([weights.clone() for weights in attentions])
    if isinstance(found, torch.Tensor) and tuple(found.shape) == (2, 4, 6, 6):
        return "the heads are still apart: average over them (dim=1) in each block, before anything is multiplied"
    if problem := shape_problem(found, right.shape):
        return problem
    if close(found, right):
        return None
    identity, means = torch.eye(6), [weights.mean(dim=1) for weights in attentions]
    halves = [(mean + identity) / 2 for mean in means]

    def product(matrices):
        result = matrices[0]
        for matrix in matrices[1:]:
            result = matrix @ result
        return result

    highest = [(weights.amax(dim=1) + identity) / 2 for weights in attentions]
    return explain(
        found,
        {
            "the residual is missing: half of a token is what it was before, 0.5 A + 0.5 I": [
                product(means)
            ],
            "the blocks are multiplied in the wrong order: the *last* block stands on the left": [
                product(halves[::-1])
            ],
            "A + I has rows that sum to 2; halve it, so that each row sums to 1": [
                product([2 * each for each in halves])
            ],
            "you multiplied element by element; the blocks follow one another, which is a matrix product, @": [
                halves[0] * halves[1] * halves[2]
            ],
            "you averaged the blocks; information passes from block to block, which is a product": [
                sum(halves) / 3,
                sum(means) / 3,
            ],
            "that is one block alone; multiply all of them": [*halves, *means],
            "you took the strongest head of each block; here their mean is wanted": [
                product(highest)
            ],
            "the last product is missing or too many: each block counts once": [
                product(halves[:-1]),
                product([*halves, halves[-1]]),
            ],
            "the result is transposed: row i is the output token i, and sums to 1": [
                right.transpose(-2, -1)
            ],
        },
        right,
    )
