"""The checks of notebook 02: patches, attention, a pre-norm block, positions for another resolution, rollout, FLOPs.

Each check first sees whether the learner's result is right; if not, whether it equals what a known mistake would give
on the same inputs. The functions named `*_reference` are what later cells use where a learner has none of their own.
Shapes: B pictures, N tokens of width D, H heads of width h = D / H.
"""

import torch
import torch.nn.functional as F
from einops import rearrange

from vlm_lite.labs.core import close, exercise, explain, generic, shape_problem
from vlm_lite.models.positions import resize_positions as resize_positions_reference
from vlm_lite.models.vit import attention_rollout as attention_rollout_reference
from vlm_lite.models.vit import attention_weights


def patchify_reference(images, patch_size):
    """images (B, C, S, S) -> patches (B, N, C·p·p), row by row, each one channel after the other."""
    return rearrange(
        images, "b c (rows p) (columns q) -> b (rows columns) (c p q)", p=patch_size, q=patch_size
    )


def attention_reference(q, k, v):
    """q, k, v (B, H, N, h) -> what each token takes, (B, H, N, h), and the weights (B, H, N, N)."""
    weights = attention_weights(q, k).to(v.dtype)
    return weights @ v, weights


def pre_norm_block_reference(x, attend, think, norm1, norm2):
    """x (B, N, D) -> (B, N, D): tokens talk, then each thinks alone; each step reads a normalised copy."""
    x = x + attend(norm1(x))
    return x + think(norm2(x))


def block_flops_reference(tokens, width, mlp_width):
    """FLOPs of the matrix products of one block for one picture, two for each multiply-and-add."""
    return 8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * mlp_width


@exercise(patchify_reference)
def patchify(learner):
    """Two random pictures of 12 pixels a side, cut into patches of 4."""
    images, p = torch.randn(2, 3, 12, 12), 4
    right = patchify_reference(images, p)  # (2, 9, 48)
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
            if close(learner(other.clone(), 2), patchify_reference(other, 2))
            else (
                "it is right for colour pictures of 12 pixels and wrong for grey ones of 6: is a size written as a number?"
            )
        )

    def order(pattern):
        return rearrange(images, f"b c (rows p) (columns q) -> {pattern}", p=p, q=p)

    return explain(
        found,
        {
            "a bare reshape cuts the picture into strips of pixels in memory order, not into squares: split each side into "
            "(rows p) and (columns q) first": [
                images.reshape(2, 9, 48),
                images.permute(0, 2, 3, 1).reshape(2, 9, 48),
            ],
            "the patches are numbered column by column; row by row is the custom: (rows columns)": [
                order("b (columns rows) (c p q)")
            ],
            "inside a patch the channels come last, (p q c); a convolution's kernel is (c p q), and its weights would no "
            "longer fit": [order("b (rows columns) (p q c)")],
            "each patch is transposed: (c p q), not (c q p)": [order("b (rows columns) (c q p)")],
            "you took every third pixel: `(p rows)` makes neighbours of pixels that are far apart; write `(rows p)`": [
                rearrange(images, "b c (p rows) (q columns) -> b (rows columns) (c p q)", p=p, q=p)
            ],
        },
    ) or generic(found, right)


@exercise(attention_reference)
def attention(learner):
    """Random queries, keys and values of three heads."""
    q, k, v = 1.5 * torch.randn(2, 3, 5, 8), 1.5 * torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    result = learner(q.clone(), k.clone(), v.clone())
    if not isinstance(result, tuple | list) or len(result) != 2:
        return (
            "return two things: what each token takes, (B, H, N, h), and the weights, (B, H, N, N)"
        )
    mixed, weights = result
    right, right_weights = attention_reference(q, k, v)
    if problem := shape_problem(weights, right_weights.shape, "the second result, the weights,"):
        return problem + (
            ": did you return the two in the other order?"
            if getattr(weights, "shape", None) == right.shape
            else ""
        )
    if problem := shape_problem(mixed, right.shape, "the first result"):
        return problem
    scores = q @ k.transpose(-2, -1)
    if not close(weights, right_weights):
        return (
            explain(
                weights,
                {
                    "you left out the division of the scores by √h, where h is the width of one head": [
                        scores.softmax(-1)
                    ],
                    "you divide by h; divide by its root, √h": [(scores / 8).softmax(-1)],
                    "you divide by the root of the *whole* width; q is split already, so its last axis is h": [
                        (scores / 24**0.5).softmax(-1)
                    ],
                    "your softmax runs over the tokens that ask; each row must share out 1 among the tokens that are looked "
                    "at: dim=-1": [(scores / 8**0.5).softmax(-2)],
                    "you return the scores; the weights are their softmax": [
                        scores / 8**0.5,
                        scores,
                    ],
                    "queries and keys are exchanged: row i belongs to the query i, so it is q @ kᵀ": [
                        attention_reference(k, q, v)[1]
                    ],
                    "your attention is causal: patches are no sentence, and each may look at all": [
                        attention_weights(q, k, is_causal=True)
                    ],
                },
            )
            or "the weights are not softmax(q kᵀ / √h), head by head"
        )
    if not close(mixed, right):
        return (
            explain(
                mixed,
                {
                    "the weights are right but were multiplied with the wrong thing; they mix the *values* v": [
                        right_weights @ k,
                        right_weights @ q,
                    ],
                    "the weights are right but transposed before they mix: weights @ v": [
                        right_weights.transpose(-2, -1) @ v
                    ],
                },
            )
            or "the weights are right, but the first result is not weights @ v"
        )
    return None


@exercise(pre_norm_block_reference)
def pre_norm_block(learner):
    """Random tokens, with random linear maps in place of attention and MLP and two different norms."""
    width = 16
    x = 2 * torch.randn(2, 5, width) + 1
    a, b, g1, g2 = (
        torch.randn(width, width),
        torch.randn(width, width),
        torch.rand(width) + 0.5,
        torch.rand(width) - 2,
    )

    def attend(x):
        return x.mean(dim=1, keepdim=True).tanh() + 0.2 * x @ a

    def think(x):
        return F.gelu(0.3 * x @ b)

    def norm1(x):
        return F.layer_norm(x, (width,), g1)

    def norm2(x):
        return F.layer_norm(x, (width,), g2)

    right = pre_norm_block_reference(x, attend, think, norm1, norm2)
    found = learner(x.clone(), attend, think, norm1, norm2)
    problem = shape_problem(found, right.shape)
    if problem or close(found, right):
        return problem
    middle, post = x + attend(norm1(x)), norm1(x + attend(x))
    first = norm1(x)
    first = first + attend(first)
    second = norm2(first)
    return explain(
        found,
        {
            "that is *post*-norm, as in the first transformer and in BERT: here the norm comes before each step, and "
            "nothing normalises the sum": [norm2(post + think(post))],
            "the residuals are missing: each step is *added* to x": [
                think(norm2(attend(norm1(x)))),
                think(norm2(middle)),
                attend(norm1(x)),
            ],
            "the norms are missing: each step reads a normalised copy of x": [
                x + attend(x) + think(x + attend(x)),
                middle + think(middle),
                x + attend(x) + think(norm2(x + attend(x))),
            ],
            "you normalise x itself; the residual stream must stay as it is, and only a *copy* is normalised": [
                second + think(second)
            ],
            "both steps read the same x; the MLP must see what attention has added": [
                x + attend(norm1(x)) + think(norm2(x))
            ],
            "the order is turned: tokens talk first, then each thinks alone": [
                x + think(norm2(x)) + attend(norm1(x + think(norm2(x)))),
                x + think(norm1(x)) + attend(norm2(x + think(norm1(x)))),
            ],
            "the second step has a norm of its own, norm2": [middle + think(norm1(middle))],
            "the norms are exchanged: norm1 before attention, norm2 before the MLP": [
                (lambda y: y + think(norm1(y)))(x + attend(norm2(x)))
            ],
        },
    ) or generic(found, right)


@exercise(resize_positions_reference)
def resize_positions(learner):
    """Random positions of a 6x6 grid, brought to a larger and to a smaller one."""
    positions = torch.randn(37, 5)
    large, small = (resize_positions_reference(positions, grid) for grid in (9, 4))
    found = learner(positions.clone(), 9)
    if isinstance(found, torch.Tensor) and tuple(found.shape) in {(81, 5), (80, 5)}:
        return "the class token's position is lost: it has no place in the grid, so put it back in front as it was"
    if problem := shape_problem(found, large.shape):
        return problem
    less = learner(positions.clone(), 4)
    if problem := shape_problem(less, small.shape, "for a smaller grid your result"):
        return problem
    found, right = torch.cat([found, less]), torch.cat([large, small])
    if close(found, right):
        return None

    def resized(patches, grid, mode="bicubic", **options):
        image = rearrange(patches, "(rows columns) d -> 1 d rows columns", rows=6)
        image = F.interpolate(image, (grid, grid), mode=mode, **options)
        return rearrange(image, "1 d rows columns -> (rows columns) d")

    def both(function):
        return torch.cat([torch.cat([positions[:1], function(grid)]) for grid in (9, 4)])

    if not close(found[:1], positions[:1]) and not close(found[0], right[0]):
        return "the first row, the class token's position, must stay as it is: only the patches form a grid"
    return explain(
        found,
        {
            "`antialias=True` is missing: without it a smaller grid skips positions instead of averaging them": [
                both(lambda grid: resized(positions[1:], grid))
            ],
            "that is bilinear; the weights' authors and timm interpolate with mode='bicubic'": [
                both(
                    lambda grid, antialias=antialias: resized(
                        positions[1:], grid, "bilinear", antialias=antialias
                    )
                )
                for antialias in (True, False)
            ],
            "with `align_corners=True` the corners are nailed down; leave it False, as for pictures": [
                both(
                    lambda grid, antialias=antialias: resized(
                        positions[1:], grid, align_corners=True, antialias=antialias
                    )
                )
                for antialias in (True, False)
            ],
            "that is the nearest neighbour, so that several patches share a position; use mode='bicubic'": [
                both(lambda grid: resized(positions[1:], grid, "nearest"))
            ],
            "the grid is transposed on the way back: rows first, '1 d rows columns -> (rows columns) d'": [
                both(
                    lambda grid: rearrange(
                        resized(positions[1:], grid, antialias=True), "(a b) d -> (b a) d", a=grid
                    )
                )
            ],
            "a bare reshape to (1, D, rows, columns) mixes channels with places: bring D to the front by rearrange or "
            "permute": [
                both(
                    lambda grid: F.interpolate(
                        positions[1:].reshape(1, 5, 6, 6),
                        (grid, grid),
                        mode="bicubic",
                        antialias=True,
                    ).reshape(-1, 5)
                )
            ],
        },
    ) or generic(found, right)


@exercise(attention_rollout_reference)
def attention_rollout(learner):
    """Three blocks of random attention, two pictures, four heads."""
    attentions = list((2 * torch.randn(3, 2, 4, 6, 6)).softmax(dim=-1))
    right = attention_rollout_reference(attentions)
    found = learner([weights.clone() for weights in attentions])
    if isinstance(found, torch.Tensor) and tuple(found.shape) == (2, 4, 6, 6):
        return "the heads are still apart: average over them (dim=1) in each block, before anything is multiplied"
    if problem := shape_problem(found, right.shape):
        return problem
    if close(found, right):
        return None
    eye, means = torch.eye(6), [weights.mean(dim=1) for weights in attentions]
    halves = [(mean + eye) / 2 for mean in means]

    def product(matrices):
        result = matrices[0]
        for matrix in matrices[1:]:
            result = matrix @ result
        return result

    highest = [(weights.amax(dim=1) + eye) / 2 for weights in attentions]
    return explain(
        found,
        {
            "the residual is missing: half of a token is what it was before, 0.5 A + 0.5 I": [
                product(means)
            ],
            "the blocks are multiplied in the wrong order: the *last* block stands on the left": [
                product(halves[::-1])
            ],
            "A + I has rows that sum to 2; halve it, so that each row shares out 1": [
                product([2 * each for each in halves])
            ],
            "you multiplied element by element; the blocks follow one another, which is a matrix product, @": [
                halves[0] * halves[1] * halves[2]
            ],
            "you averaged the blocks; news travels from block to block, which is a product": [
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
    ) or generic(found, right)


@exercise(block_flops_reference)
def block_flops(learner):
    """Random sizes of blocks, compared all together."""
    sizes = [
        (
            int(torch.randint(10, 900, ())),
            8 * int(torch.randint(4, 90, ())),
            int(torch.randint(9, 3000, ())),
        )
        for _ in range(4)
    ]  # tokens, width, mlp_width
    found = torch.tensor([float(learner(*size)) for size in sizes], dtype=torch.float64)

    def of(function):
        return torch.tensor([float(function(*size)) for size in sizes], dtype=torch.float64)

    right = of(block_flops_reference)
    if _near(found, right):
        return None
    mistakes = {
        "that counts multiply-and-adds; each of them is *two* FLOPs": lambda n, d, m: (
            block_flops_reference(n, d, m) / 2
        ),
        "the products of attention itself are missing: q kᵀ and A v take 2 N² D each": lambda n, d, m: (
            8 * n * d * d + 4 * n * d * m
        ),
        "one of the two products of attention is missing: q kᵀ *and* A v take 2 N² D each": lambda n, d, m: (
            block_flops_reference(n, d, m) - 2 * n * n * d
        ),
        "there are four projections, not three: q, k, v and the one on the way out": lambda n, d, m: (
            block_flops_reference(n, d, m) - 2 * n * d * d
        ),
        "there are four projections, not one: q, k, v and the one on the way out": lambda n, d, m: (
            block_flops_reference(n, d, m) - 6 * n * d * d
        ),
        "the MLP has two layers, D to M and M back to D": lambda n, d, m: (
            block_flops_reference(n, d, m) - 2 * n * d * m
        ),
        "the MLP is missing: 2 N D M for each of its two layers": lambda n, d, m: (
            8 * n * d * d + 4 * n * n * d
        ),
        "the MLP's width is `mlp_width`, which need not be 4 D": lambda n, d, m: (
            block_flops_reference(n, d, 4 * d)
        ),
        "the products of attention grow with N², since every token asks every token": lambda n, d, m: (
            8 * n * d * d + 4 * n * d + 4 * n * d * m
        ),
    }
    for said, mistake in mistakes.items():
        if _near(found, of(mistake)):
            return said
    n, d, m = sizes[0]
    return (
        f"for N = {n}, D = {d}, M = {m} yours is {found[0]:.0f} and the right one {right[0]:.0f}. A product of "
        "(a, b) and (b, c) takes 2abc; go through the matrix products of a block one by one"
    )


def _near(found, right):
    return bool(((found - right).abs() <= 1e-9 * right).all())
