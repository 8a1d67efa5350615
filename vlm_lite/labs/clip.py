"""The checks of notebook 01: similarity, InfoNCE, the bound on mutual information, Recall@K, zero-shot classes.

Each check first sees whether the learner's result is right; if not, whether it equals what a known mistake would give
on the same inputs. The functions named `*_reference` are what later cells use where a learner has none of their own.
"""

import math

import torch
import torch.nn.functional as F

from ..models import clip
from .core import close, exercise, explain, generic, shape_problem


def cosine_similarity_reference(x, y):
    """x (N, P), y (M, P), of any length -> the cosine of every x with every y, (N, M)."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T


def information_bound_reference(loss, batch_size):
    """The least mutual information, in nats, that an InfoNCE loss over `batch_size` pairs proves: log N - loss."""
    return math.log(batch_size) - loss


def recall_at_k_reference(similarity, k):
    """similarity (N, N), query i belonging to candidate i -> the fraction of queries with it among their first k.

    A tie counts against the query, and so does NaN, which is not less than anything.
    """
    ahead = (~(similarity < similarity.diagonal()[:, None])).sum(
        dim=1
    ) - 1  # (N,) all but itself that are not behind
    return (ahead < k).float().mean()


def class_embeddings_reference(encode_text, prompts):
    """prompts: C lists of strings; encode_text: strings -> (n, P) -> one unit vector a class, (C, P)."""
    means = [F.normalize(encode_text(each), dim=-1).mean(dim=0) for each in prompts]
    return F.normalize(torch.stack(means), dim=-1)


@exercise(cosine_similarity_reference)
def cosine_similarity(learner):
    """Five random pictures against seven captions, of random lengths: all cosines at once."""
    x, y = _lengths(torch.randn(5, 12)), _lengths(torch.randn(7, 12))
    right = cosine_similarity_reference(x, y)  # (5, 7)
    found = learner(x, y)
    if isinstance(found, torch.Tensor) and found.shape == right.T.shape:
        return (
            "the result is (captions, pictures); rows must be pictures and columns captions. "
            "Transpose the second factor"
        )
    problem = shape_problem(found, right.shape)
    if problem or close(found, right):
        return problem
    x1, y1 = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    raw = x @ y.T
    return explain(
        found,
        {
            "these are dot products, not cosines: divide each vector by its own length first": [
                raw
            ],
            "only one side was normalised: both pictures and captions need unit length": [
                x1 @ y.T,
                x @ y1.T,
            ],
            "you normalised down the batch; each *row* is a vector: normalise along the last axis, dim=-1": [
                F.normalize(x, dim=0) @ F.normalize(y, dim=0).T
            ],
            "you divided by the *squared* length; take the square root of the sum of squares": [
                x / (x * x).sum(-1, keepdim=True) @ (y / (y * y).sum(-1, keepdim=True)).T
            ],
            "you divided by the sum of absolute values (the 1-norm); cosine takes the Euclidean length, the 2-norm": [
                F.normalize(x, p=1, dim=-1) @ F.normalize(y, p=1, dim=-1).T
            ],
            "stop before the softmax: the cosines themselves are wanted": [
                (x1 @ y1.T).softmax(-1),
                raw.softmax(-1),
            ],
        },
    ) or generic(found, right)


@exercise(clip.info_nce)
def info_nce(learner):
    """Eight random pairs: the value, then the gradients, then the largest scale that CLIP allows."""
    x, y = _lengths(torch.randn(8, 16)), _lengths(torch.randn(8, 16))
    log_scale = torch.empty(()).uniform_(1.5, 2.5)
    right = clip.info_nce(x, y, log_scale)
    inputs = [t.clone().requires_grad_() for t in (x, y, log_scale)]
    found = learner(*inputs)
    if isinstance(found, torch.Tensor) and found.ndim:
        return (
            f"a loss is one number; yours has shape {tuple(found.shape)}. "
            "Take the mean over the batch, which F.cross_entropy does by itself"
        )
    if not close(
        found, right, 1e-5
    ):  # narrow: the two directions of one batch may differ by little
        return explain(found, _info_nce_mistakes(x, y, log_scale)) or (
            f"on one random batch yours is {torch.as_tensor(found).item():.4f} and the right one {right:.4f}. "
            "Check in this order: rows of unit length; times e^logit_scale; targets 0, 1, 2, ...; the mean of both "
            "directions"
        )
    if not isinstance(found, torch.Tensor) or not found.requires_grad:
        return "the value is right but carries no gradient: leave out .item(), .detach(), float() and torch.no_grad()"
    grads = torch.autograd.grad(found, inputs, allow_unused=True)
    for name, grad in zip(("image_embeds", "text_embeds", "logit_scale"), grads, strict=True):
        if grad is None:
            return (
                f"the value is right but no gradient reaches {name}: "
                + (
                    "use logit_scale.exp(), not math.exp(logit_scale)"
                    if name == "logit_scale"
                    else "it was detached on the way"
                )
                + ", or it will never learn"
            )
    twins = [t.clone().requires_grad_() for t in (x, y, log_scale)]
    expected = torch.autograd.grad(clip.info_nce(*twins), twins)
    for name, grad, ours in zip(
        ("image_embeds", "text_embeds", "logit_scale"), grads, expected, strict=True
    ):
        if not close(grad, ours, 1e-3):
            return f"the value is right but the gradient of {name} is not: is part of the computation detached?"
    sharp = torch.tensor(clip.MAX_LOGIT_SCALE)
    if not close(learner(x, -x, sharp), clip.info_nce(x, -x, sharp), 1e-3):
        return (
            "at the largest scale, 100, it overflows: e^100 is no number in fp32. F.cross_entropy or "
            "torch.logsumexp subtract the largest logit first; torch.log(torch.softmax(...)) does not help"
        )
    return None


def _info_nce_mistakes(x, y, log_scale):
    scale, target = log_scale.exp(), torch.arange(len(x))
    cosine = cosine_similarity_reference(x, y)

    def loss(logits, target=target, **options):
        return F.cross_entropy(logits, target, **options)

    def both(logits, target=target, **options):
        return (loss(logits, target, **options) + loss(logits.T, target, **options)) / 2

    logits = scale * cosine
    return {
        "your loss is one-directional, pictures choosing captions only: average it with that of logits.T": [
            loss(logits)
        ],
        "your loss is one-directional, captions choosing pictures only: average it with that of logits": [
            loss(logits.T)
        ],
        "you added the two directions; the mean of them is wanted: divide by 2": [2 * both(logits)],
        "the embeddings are not of unit length: normalise each row first": [
            both(scale * x @ y.T),
            loss(scale * x @ y.T),
        ],
        "you normalised down the batch; each row is a vector: normalise along dim=-1": [
            both(scale * F.normalize(x, dim=0) @ F.normalize(y, dim=0).T)
        ],
        "logit_scale is a *logarithm*: multiply by logit_scale.exp()": [both(log_scale * cosine)],
        "the temperature is upside down: *multiply* the cosines by logit_scale.exp(), since 1/τ = e^logit_scale": [
            both(cosine / scale)
        ],
        "logit_scale was used as a temperature: multiply by logit_scale.exp() instead of dividing by it": [
            both(cosine / log_scale)
        ],
        "the temperature is missing: multiply the cosines by logit_scale.exp()": [both(cosine)],
        "the sign is turned: a loss is *minus* the log-probability of the right pair": [
            -both(logits)
        ],
        "you summed over the batch; take the mean over its pairs": [
            len(x) * both(logits),
            len(x) * 2 * both(logits),
        ],
        "the right answers are on the diagonal: target i for row i, torch.arange(len(logits)), not zeros": [
            both(logits, torch.zeros_like(target))
        ],
        "the denominator leaves out the right pair; InfoNCE sums over *all* candidates, the right one too": [
            _without_right_pair(logits)
        ],
    }


def _without_right_pair(logits):
    others = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -torch.inf)
    right = logits.diagonal()
    return ((others.logsumexp(1) - right).mean() + (others.logsumexp(0) - right).mean()) / 2


@exercise(information_bound_reference)
def information_bound(learner):
    """A few losses at a random batch size, as a tensor and as one number."""
    size = int(torch.randint(20, 200, ()))
    losses = torch.rand(6) * 3 + 0.1
    right = information_bound_reference(losses, size)
    found = learner(losses, size)
    if close(found, right):
        one = float(losses[0])
        return (
            None
            if close(learner(one, size), float(right[0]))
            else ("it is right for a tensor of losses and wrong for a single number")
        )
    return explain(
        found,
        {
            "the sign is turned: a *lower* loss proves *more* information; it is log N - loss": [
                -right
            ],
            "that logarithm is to base 2; the loss is in nats, so take the natural one, math.log": [
                math.log2(size) - losses
            ],
            "that logarithm is to base 10; the loss is in nats, so take the natural one, math.log": [
                math.log10(size) - losses
            ],
            "N counts all candidates, the right one too: log N, not log(N - 1)": [
                math.log(size - 1) - losses
            ],
            "the logarithm is missing: it is log N - loss": [size - losses],
            "log N is added to the loss; the loss must be taken *from* it": [
                math.log(size) + losses
            ],
            "a ratio says something else; subtract: log N - loss": [
                math.log(size) / losses,
                losses / math.log(size),
                1 - losses / math.log(size),
            ],
        },
    ) or generic(found, right)


@exercise(recall_at_k_reference)
def recall_at_k(learner):
    """Random matrices of 13 queries at several k, compared all together; then matrices with ties."""
    matrices = [torch.randn(13, 13) + 0.8 * torch.eye(13) for _ in range(4)]
    cases = [(matrix, k) for matrix in matrices for k in (1, 3, 5)]
    found = [learner(matrix.clone(), k) for matrix, k in cases]
    if any(isinstance(value, torch.Tensor) and value.ndim for value in found):
        return f"recall is one number; yours has shape {tuple(found[0].shape)}. Take the mean over the queries"
    found = torch.stack([torch.as_tensor(value).double() for value in found])

    def of(function):
        return torch.tensor([float(function(matrix, k)) for matrix, k in cases])

    right = of(recall_at_k_reference)
    if close(found, right):
        return (
            _ties(learner, matrices[0])
            if close(learner(matrices[0], 13), 1.0)
            else ("with k as large as the gallery it must be 1")
        )
    return explain(
        found,
        {
            "you ranked down the columns; each *row* is a query, so rank along dim=1": [
                of(lambda s, k: recall_at_k_reference(s.T, k))
            ],
            "k is ignored: the right one may be *anywhere* among the first k": [
                of(lambda s, k: recall_at_k_reference(s, 1))
            ],
            "you took the k *least* similar: sort with the largest first": [
                of(lambda s, k: recall_at_k_reference(-s, k))
            ],
            "that is a count of hits; divide by the number of queries": [
                of(lambda s, k: 13 * recall_at_k_reference(s, k))
            ],
            "that is a percentage; a fraction in 0..1 is wanted": [
                of(lambda s, k: 100 * recall_at_k_reference(s, k))
            ],
            "you divided by k (that is precision); a query is a hit or not, whatever k is": [
                of(lambda s, k: recall_at_k_reference(s, k) / k)
            ],
            "you look at one candidate too many: fewer than k may stand before the right one": [
                of(lambda s, k: recall_at_k_reference(s, k + 1))
            ],
            "you look at one candidate too few: the first k include the k-th": [
                of(lambda s, k: recall_at_k_reference(s, k - 1))
            ],
        },
    ) or generic(found, right)


def _ties(learner, matrix):
    """An encoder that gives every text one vector, and one that gives each odd text the vector of its neighbour."""
    twins = matrix.clone()
    twins[:, 1::2] = twins[:, :-1:2]
    cases = [(tied, k) for tied in (torch.ones_like(matrix), twins) for k in (1, 3, 5)]
    found = torch.tensor([float(learner(tied.clone(), k)) for tied, k in cases])
    if close(found, torch.tensor([float(recall_at_k_reference(tied, k)) for tied, k in cases])):
        return None
    for_you = [
        ((tied > tied.diagonal()[:, None]).sum(dim=1) < k).float().mean() for tied, k in cases
    ]
    return explain(
        found,
        {
            "right without ties, but they are counted for you: an encoder that gives every text the same vector would be "
            "perfect. Count the others that are *at least* as similar as the right one": [
                torch.stack(for_you)
            ],
        },
    ) or (
        "right without ties, but where others are as similar as the right one, the order of the columns decides, as "
        "in a sort: count them all as standing before it"
    )


@exercise(class_embeddings_reference)
def class_embeddings(learner):
    """Three classes with 2, 4 and 3 prompts, and an encoder that gives every string a random vector of its own."""
    memory = {}

    def encode_text(texts):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(
                "encode_text takes a list of strings: give it the prompts of one class at a time"
            )
        for text in texts:
            memory.setdefault(text, torch.randn(10) * (0.5 + 3 * torch.rand(())))
        return torch.stack([memory[text] for text in texts])

    prompts = [
        [f"a {name} {k}" for k in range(count)]
        for name, count in (("cat", 2), ("dog", 4), ("owl", 3))
    ]
    right = class_embeddings_reference(encode_text, prompts)  # (3, 10)
    found = learner(encode_text, prompts)
    if isinstance(found, list | tuple):
        return "your result is a list; make one tensor (classes, P) of it with torch.stack"
    if isinstance(found, torch.Tensor) and len(found) == sum(len(each) for each in prompts):
        return "there is one row a *prompt*; average the prompts of a class, so that there is one row a class"
    problem = shape_problem(found, right.shape)
    if problem or close(found, right):
        return problem
    raw = [encode_text(each) for each in prompts]
    unit = [F.normalize(each, dim=-1) for each in raw]
    means, plain = (torch.stack([each.mean(0) for each in parts]) for parts in (unit, raw))
    return explain(
        found,
        {
            "the mean of unit vectors is shorter than 1: normalise once more after averaging": [
                means
            ],
            "normalise each prompt *before* averaging, or the longest vector has the most to say": [
                F.normalize(plain, dim=-1)
            ],
            "nothing is normalised: each prompt before averaging, and the mean afterwards": [plain],
            "only one prompt of each class is used; average them all": [
                torch.stack([each[i] for each in parts]) for i in (0, -1) for parts in (raw, unit)
            ],
            "you added the prompts up: classes with more prompts would win; take the mean, then normalise": [
                torch.stack([each.sum(0) for each in parts]) for parts in (raw, unit)
            ],
        },
    ) or generic(found, right)


def _lengths(vectors):
    """Give each row another length, so that a missing normalisation shows."""
    return vectors * (0.5 + 2 * torch.rand(len(vectors), 1))
