"""Notebook 02's checks: the right answers of several styles pass, and each known mistake is called by its name."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.labs import check


def cut(pattern, split="b c (rows p) (columns q)"):
    return lambda images, p: rearrange(images, f"{split} -> {pattern}", p=p, q=p)


def unfolded(images, p):
    return F.unfold(images, kernel_size=p, stride=p).transpose(1, 2)


def weights_of(q, k, scale=None, dim=-1):
    return (q @ k.transpose(-2, -1) / (scale or q.shape[-1] ** 0.5)).softmax(dim)


def mixed(q, k, v, scale=None, dim=-1):
    weights = weights_of(q, k, scale, dim)
    return weights @ v, weights


def by_einsum(q, k, v):
    weights = torch.einsum("bhid,bhjd->bhij", q, k)
    weights = torch.softmax(weights * q.shape[-1] ** -0.5, dim=3)
    return torch.einsum("bhij,bhjd->bhid", weights, v), weights


def causal(q, k, v):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf).softmax(
        -1
    )
    return weights @ v, weights


def scores_only(q, k, v):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v, scores


def in_place_of_x(x, attend, think, norm1, norm2):
    x = norm1(x)
    x = x + attend(x)
    x = norm2(x)
    return x + think(x)


def post_norm(x, attend, think, norm1, norm2):
    x = norm1(x + attend(x))
    return norm2(x + think(x))


def pre_norm(x, attend, think, norm1, norm2):
    middle = torch.add(x, attend(norm1(x)))
    return torch.add(middle, think(norm2(middle)))


def no_norms(x, attend, think, norm1, norm2):
    x = x + attend(x)
    return x + think(x)


def no_residual(x, attend, think, norm1, norm2):
    return think(norm2(attend(norm1(x))))


def parallel(x, attend, think, norm1, norm2):
    return x + attend(norm1(x)) + think(norm2(x))


def one_norm(x, attend, think, norm1, norm2):
    return pre_norm(x, attend, think, norm1, norm1)


def exchanged(x, attend, think, norm1, norm2):
    return pre_norm(x, attend, think, norm2, norm1)


def think_first(x, attend, think, norm1, norm2):
    return pre_norm(x, think, attend, norm2, norm1)


def resized(positions, grid, mode="bicubic", keep_first=True, back="(rows columns) d", **options):
    side = round((len(positions) - 1) ** 0.5)
    image = rearrange(positions[1:], "(rows columns) d -> 1 d rows columns", rows=side)
    image = F.interpolate(image, (grid, grid), mode=mode, **options)
    patches = rearrange(image, f"1 d rows columns -> {back}")
    return torch.cat([positions[:1], patches]) if keep_first else patches


def permuted(positions, grid):
    first, rest = positions[:1], positions[1:]
    side, width = int(len(rest) ** 0.5), rest.shape[1]
    rest = nn.functional.interpolate(
        rest.T.reshape(1, width, side, side), size=grid, mode="bicubic", antialias=True
    )
    return torch.cat([first, rest.reshape(width, -1).T])


def bare_reshape(positions, grid):
    side = int((len(positions) - 1) ** 0.5)
    image = positions[1:].reshape(1, -1, side, side)
    image = F.interpolate(image, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat([positions[:1], image.reshape(grid * grid, -1)])


def new_class_token(positions, grid):
    result = resized(positions, grid, antialias=True)
    result[0] = result[1:].mean(0)
    return result


def rolled(attentions, residual=True, half=True, backwards=False):
    result = torch.eye(attentions[0].shape[-1])
    for weights in attentions:
        mean = weights.mean(1)
        mean = mean + torch.eye(mean.shape[-1]) if residual else mean
        mean = mean / 2 if residual and half else mean
        result = result @ mean if backwards else mean @ result
    return result


def from_the_end(attentions):
    matrices = [
        0.5 * (weights.mean(dim=1) + torch.eye(weights.shape[-1])) for weights in attentions
    ]
    return matrices[2] @ (matrices[1] @ matrices[0])


def elementwise(attentions):
    result = 1
    for weights in attentions:
        result = result * (weights.mean(1) + torch.eye(weights.shape[-1])) / 2
    return result


def strongest(attentions):
    return rolled([weights.amax(1, keepdim=True) for weights in attentions])


def each_head(attentions):
    result = torch.eye(attentions[0].shape[-1])
    for weights in attentions:
        result = (weights + torch.eye(weights.shape[-1])) / 2 @ result
    return result


def flops(n, d, m, projections=4, products=2, layers=2, factor=2):
    return factor * (projections * n * d * d + products * n * n * d + layers * n * d * m)


RIGHT = [
    (check.patchify, cut("b (rows columns) (c p q)")),
    (check.patchify, unfolded),
    (check.attention, mixed),
    (check.attention, by_einsum),
    (check.attention, lambda q, k, v: (F.scaled_dot_product_attention(q, k, v), weights_of(q, k))),
    (check.pre_norm_block, pre_norm),
    (check.resize_positions, lambda p, grid: resized(p, grid, antialias=True)),
    (check.resize_positions, permuted),
    (check.attention_rollout, rolled),
    (check.attention_rollout, from_the_end),
    (check.block_flops, flops),
    (check.block_flops, lambda n, d, m: 4 * n * d * (2 * d + n + m)),
]
WRONG = [
    (check.patchify, lambda x, p: x.reshape(len(x), -1, x.shape[1] * p * p), "bare reshape"),
    (check.patchify, cut("b (columns rows) (c p q)"), "column by column"),
    (check.patchify, cut("b (rows columns) (p q c)"), "channels come last"),
    (check.patchify, cut("b (rows columns) (c q p)"), "transposed"),
    (
        check.patchify,
        cut("b (rows columns) (c p q)", "b c (p rows) (q columns)"),
        "every third pixel",
    ),
    (check.patchify, cut("b rows columns (c p q)"), "one of N"),
    (check.patchify, cut("b (c p q) (rows columns)"), "shape (2, 48, 9)"),
    (check.patchify, lambda x, p: cut("b (rows columns) (c p q)")(x, p) + 1, "no mistake we know"),
    (
        check.patchify,
        lambda x, p: cut("b (rows columns) (c p q)")(x, 4) if len(x) == 2 else x.flatten(2),
        "grey",
    ),
    (check.attention, lambda q, k, v: mixed(q, k, v, 1), "left out the division"),
    (check.attention, lambda q, k, v: mixed(q, k, v, 8), "divide by h"),
    (check.attention, lambda q, k, v: mixed(q, k, v, 24**0.5), "*whole* width"),
    (check.attention, lambda q, k, v: mixed(q, k, v, dim=-2), "tokens that ask"),
    (check.attention, scores_only, "their softmax"),
    (check.attention, lambda q, k, v: mixed(k, q, v), "exchanged"),
    (check.attention, causal, "causal"),
    (check.attention, lambda q, k, v: (weights_of(q, k) @ k, weights_of(q, k)), "*values* v"),
    (
        check.attention,
        lambda q, k, v: (weights_of(q, k).transpose(-2, -1) @ v, weights_of(q, k)),
        "transposed before",
    ),
    (check.attention, lambda q, k, v: mixed(q, k, v)[::-1], "other order"),
    (check.attention, lambda q, k, v: mixed(q, k, v)[0], "return two things"),
    (check.pre_norm_block, post_norm, "*post*-norm"),
    (check.pre_norm_block, no_residual, "residuals are missing"),
    (check.pre_norm_block, no_norms, "norms are missing"),
    (check.pre_norm_block, in_place_of_x, "normalise x itself"),
    (check.pre_norm_block, parallel, "both steps read the same x"),
    (check.pre_norm_block, think_first, "order is turned"),
    (check.pre_norm_block, one_norm, "norm of its own"),
    (check.pre_norm_block, exchanged, "norms are exchanged"),
    (check.resize_positions, resized, "antialias=True"),
    (
        check.resize_positions,
        lambda p, grid: resized(p, grid, "bilinear", antialias=True),
        "bilinear",
    ),
    (
        check.resize_positions,
        lambda p, grid: resized(p, grid, align_corners=True, antialias=True),
        "align_corners",
    ),
    (check.resize_positions, lambda p, grid: resized(p, grid, "nearest"), "nearest neighbour"),
    (
        check.resize_positions,
        lambda p, grid: resized(p, grid, keep_first=False, antialias=True),
        "position is lost",
    ),
    (
        check.resize_positions,
        lambda p, grid: resized(p, grid, back="(columns rows) d", antialias=True),
        "transposed",
    ),
    (check.resize_positions, bare_reshape, "bare reshape"),
    (check.resize_positions, new_class_token, "first row"),
    (check.attention_rollout, lambda a: rolled(a, residual=False), "residual is missing"),
    (check.attention_rollout, lambda a: rolled(a, backwards=True), "wrong order"),
    (check.attention_rollout, lambda a: rolled(a, half=False), "sum to 2"),
    (check.attention_rollout, elementwise, "element by element"),
    (check.attention_rollout, lambda a: torch.stack(a).mean(dim=(0, 2)), "averaged the blocks"),
    (check.attention_rollout, lambda a: a[-1].mean(dim=1), "one block alone"),
    (check.attention_rollout, strongest, "strongest head"),
    (check.attention_rollout, lambda a: rolled(a[:-1]), "each block counts once"),
    (check.attention_rollout, lambda a: rolled(a).transpose(-2, -1), "transposed"),
    (check.attention_rollout, each_head, "heads are still apart"),
    (check.block_flops, lambda n, d, m: flops(n, d, m, factor=1), "*two* FLOPs"),
    (check.block_flops, lambda n, d, m: flops(n, d, m, products=0), "attention itself are missing"),
    (check.block_flops, lambda n, d, m: flops(n, d, m, products=1), "one of the two products"),
    (check.block_flops, lambda n, d, m: flops(n, d, m, projections=3), "not three"),
    (check.block_flops, lambda n, d, m: flops(n, d, m, layers=1), "two layers"),
    (check.block_flops, lambda n, d, m: flops(n, d, m, layers=0), "MLP is missing"),
    (check.block_flops, lambda n, d, m: flops(n, d, 4 * d), "need not be 4 D"),
    (check.block_flops, lambda n, d, m: flops(n, d, m) + n, "takes 2abc"),
]


def test_the_reference_of_flops_is_what_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    from vlm_lite.models.vit import MLP

    n, d, m, heads = 7, 24, 40, 3
    x, maps, mlp = (
        torch.randn(1, n, d),
        [nn.Linear(d, d) for _ in range(4)],
        MLP(width=d, mlp_width=m),
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        q, k, v = (
            rearrange(linear(x), "b n (heads h) -> b heads n h", heads=heads) for linear in maps[:3]
        )
        maps[3](rearrange(mixed(q, k, v)[0], "b heads n h -> b n (heads h)"))
        mlp(x)
    assert counter.get_total_flops() == check.block_flops.reference(n, d, m)
