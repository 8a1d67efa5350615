"""The checks of notebook 01: image encoder, text encoder, InfoNCE, training step, Recall@K, zero-shot classes.

Each check first sees whether the learner's result is right; if not, whether it equals what a known mistake would give
on the same inputs. What later cells use where a learner has none of their own comes from `lessons.clip`.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange

from vlm_lite.labs.core import close, exercise, explain, generic, shape_problem
from vlm_lite.lessons import clip

SMALL = clip.CLIPConfig(
    vocab_size=30,
    eos_token_id=5,
    image_size=12,
    patch_size=4,
    context_length=12,
    width=16,
    image_layers=2,
    text_layers=2,
    num_heads=2,
    projection_dim=8,
)
PATCHES = "b c (h p) (w q) -> b (h w) (c p q)"


def _twins(reference, learner):
    """(the reference, the learner's) of one class with the same random weights; a diagnosis where they cannot be."""
    right, mine = reference(SMALL), learner(SMALL)
    with torch.no_grad():
        for parameter in right.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    shapes = {name: value.shape for name, value in mine.state_dict().items()}
    if shapes != {name: value.shape for name, value in right.state_dict().items()}:
        return (
            right,
            "`__init__` was changed: leave its parameters as they were, and write `forward`",
        )
    mine.load_state_dict(right.state_dict())
    return right, mine


def _image(encoder, pixels, *, pattern=PATCHES, place=True, norms=(True, True), first=True, read=0):
    """An ImageEncoder's forward with one thing done in another way. read: the token, or "mean" of the patches."""
    size = encoder.patch_size
    x = encoder.patch_embedding(rearrange(pixels, pattern, p=size, q=size))  # (B, N, D)
    token = encoder.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([token, x] if first else [x, token], dim=1)
    x = x + encoder.position_embedding if place else x
    x = encoder.input_norm(x) if norms[0] else x
    for block in encoder.blocks:
        x = block(x)
    x = x[:, 1:].mean(dim=1) if read == "mean" else x[:, read]
    return encoder.output_norm(x) if norms[1] else x


@exercise(clip.ImageEncoder)
def ImageEncoder(learner):
    """Three random images of nine patches through an encoder of two blocks with random weights."""
    right, mine = _twins(clip.ImageEncoder, learner)
    if isinstance(mine, str):
        return mine
    pixels = torch.randn(3, 3, 12, 12)
    expected, found = right(pixels), mine(pixels)
    if isinstance(found, torch.Tensor) and found.shape == (3, 10, 16):
        return "you return all 10 tokens; one vector an image is wanted, the class token's: x[:, 0]"
    problem = shape_problem(found, expected.shape)
    if problem or close(found, expected):
        return problem
    mistakes = {
        "the positions are missing: add position_embedding to class token and patches": {
            "place": False
        },
        "input_norm is missing: it comes before the first block": {"norms": (False, True)},
        "output_norm is missing: normalise the class token at the end": {"norms": (True, False)},
        "the class token stands behind the patches; put it in front of them": {"first": False},
        "you read out the mean of the patches; read out the class token, x[:, 0]": {"read": "mean"},
        "you read out the last patch, x[:, -1]; the class token is the first, x[:, 0]": {
            "read": -1
        },
        "the patches run column by column; take them row by row: (h w)": {
            "pattern": "b c (h p) (w q) -> b (w h) (c p q)"
        },
        "within a patch the channels come last; they come first: (c p q)": {
            "pattern": "b c (h p) (w q) -> b (h w) (p q c)"
        },
        "these are no patches: (p h) takes every third row of pixels; (h p) takes neighbours": {
            "pattern": "b c (p h) (q w) -> b (h w) (c p q)"
        },
    }
    values = {said: [_image(right, pixels, **how)] for said, how in mistakes.items()}
    values["you read out the class token of a blockless encoder: send x through every block"] = [
        right.output_norm(right.input_norm(right.class_embedding + right.position_embedding[0]))
        .expand_as(found)
        .clone()
    ]
    return explain(found, values, expected)


def _text(encoder, ids, *, causal=True, place=True, norm=True, read="eos"):
    """A TextEncoder's forward with one thing done in another way. read: "eos", "last", "mean" or "max" (of the ids)."""
    x = encoder.token_embedding(ids)
    x = x + encoder.position_embedding[: ids.shape[1]] if place else x
    for block in encoder.blocks:
        x = block(x, is_causal=causal)
    is_eos = (ids == encoder.eos_token_id).int()
    rows, last = torch.arange(len(x)), ids.shape[1] - 1
    end = {
        "eos": is_eos.argmax(dim=1),
        "before": (is_eos.argmax(dim=1) - 1).clamp(min=0),
        "last": torch.full_like(rows, last),
        "last eos": last - is_eos.flip(1).argmax(dim=1),
        "max": ids.argmax(dim=1),
        "first": torch.zeros_like(rows),
    }
    x = x.mean(dim=1) if read == "mean" else x[rows, end[read]]
    return encoder.output_norm(x) if norm else x


@exercise(clip.TextEncoder)
def TextEncoder(learner):
    """Four texts of different lengths, whose padding is EOS in one and another token in the rest."""
    right, mine = _twins(clip.TextEncoder, learner)
    if isinstance(mine, str):
        return mine
    ids = torch.randint(6, 29, (4, 9))
    ids[:, 1] = 29  # the highest stands neither first nor before the EOS
    for row, end in enumerate((3, 8, 5, 6)):
        ids[row, end], ids[row, end + 1 :] = 5, 0
    ids[2, 5:] = 5
    expected, found = right(ids), mine(ids)
    if isinstance(found, torch.Tensor) and found.ndim == 3:
        return "you return every token; one vector a text is wanted, the one at its EOS"
    problem = shape_problem(found, expected.shape)
    if problem or close(found, expected):
        return problem
    mistakes = {
        "not causal: a token must not see later ones, so give each block is_causal=True": {
            "causal": False
        },
        "the positions are missing: add position_embedding[:T] to the tokens": {"place": False},
        "output_norm is missing: normalise what you read out": {"norm": False},
        "you read out the last position, which is padding in shorter texts; read out the EOS": {
            "read": "last"
        },
        "you read out the last EOS; padding may be EOS too, so take the first": {
            "read": "last eos"
        },
        "you read out the token before the EOS; the EOS itself has seen the whole text": {
            "read": "before"
        },
        "you read out the highest id; that is right only where EOS has the highest id": {
            "read": "max"
        },
        "you read out the first token, which has seen nothing but itself; read out the EOS": {
            "read": "first"
        },
        "you average over all tokens, padding too; read out the EOS": {"read": "mean"},
    }
    return explain(found, {said: [_text(right, ids, **how)] for said, how in mistakes.items()}) or (
        generic(found, expected)
    )


def _step(model, pixels, ids, loss_fn, accelerator, optimizer, scheduler, *, leave_out=()):
    """The steps of `lessons.clip.training_step` by name, without those in `leave_out`."""
    loss = loss_fn(*model(pixels, ids))
    steps = {
        "backward": lambda: accelerator.backward(loss),
        "clip": lambda: accelerator.clip_grad_norm_(model.parameters(), 1.0),
        "step": optimizer.step,
        "scheduler": scheduler.step,
        "zero": optimizer.zero_grad,
    }
    for name, call in steps.items():
        if name not in leave_out:
            call()
    return loss.detach()


@exercise(clip.training_step)
def training_step(learner):
    """Three steps of a small CLIP with a loss whose gradient is larger than 1; then weights, losses, schedule."""
    pixels, ids = torch.randn(4, 3, 12, 12), torch.randint(6, 30, (4, 6))
    ids[:, 5] = 5
    start = clip.CLIP(SMALL).state_dict()

    def run(step):
        model = clip.CLIP(SMALL)
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        norms = []

        def clip_norm(parameters, norm):
            parameters = list(parameters)
            norms.append(norm)
            return torch.nn.utils.clip_grad_norm_(parameters, norm)

        accelerator = SimpleNamespace(
            backward=lambda loss: loss.backward(),
            clip_grad_norm_=clip_norm,
            num_processes=1,
        )

        def loss_fn(*embeds):
            return 30 * clip.info_nce(*embeds)

        losses = [
            step(model, pixels, ids, loss_fn, accelerator, optimizer, scheduler) for _ in range(3)
        ]
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        return losses, weights, optimizer.param_groups[0]["lr"], norms, model

    losses, weights, rate, _, _ = run(clip.training_step)
    found, mine, my_rate, norms, model = run(learner)
    if any(isinstance(each, torch.Tensor) and each.requires_grad for each in found):
        return "the loss you return carries its graph, which keeps every activation alive: return loss.detach()"
    if isinstance(found[0], torch.Tensor) and found[0].ndim:
        return f"the loss you return has shape {tuple(found[0].shape)}; one number is wanted"
    if close(mine, weights, 1e-5) and close(my_rate, rate):
        if any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters()):
            return "gradients are left over and add up in the next step: end with optimizer.zero_grad()"
        if not close(torch.stack([torch.as_tensor(each) for each in found]), torch.stack(losses)):
            return "the weights are right but the loss you return is not the one of this step"
        return None
    if close(mine, torch.cat([start[n].flatten() for n, _ in model.named_parameters()]), 1e-6):
        return "no weight has moved: is accelerator.backward(loss) before optimizer.step(), and zero_grad after it?"
    said = {
        "the gradient is not clipped: accelerator.clip_grad_norm_(model.parameters(), 1.0) before the step": (
            "clip",
        ),
        "gradients add up from step to step: optimizer.zero_grad() is missing": ("zero",),
        "the learning rate never changes: scheduler.step() is missing": ("scheduler",),
    }
    for message, left in said.items():
        other = run(lambda *batch, left=left: _step(*batch, leave_out=left))
        if close(mine, other[1], 1e-5) and close(my_rate, other[2]):
            return message
    if norms and set(norms) != {1.0}:
        return f"the gradient's norm is clipped to {norms[0]:g}; clip it to 1"
    if not close(my_rate, rate):
        return "scheduler.step() is called more or less often than once a step"
    return (
        "after three steps the weights differ. The order is: forward, loss, backward, clip, optimizer.step(), "
        "scheduler.step(), zero_grad()"
    )


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
    sharp = torch.tensor(math.log(100))
    if not close(learner(x, -x, sharp), clip.info_nce(x, -x, sharp), 1e-3):
        return (
            "at the largest scale, 100, it overflows: e^100 is no number in fp32. F.cross_entropy or "
            "torch.logsumexp subtract the largest logit first; torch.log(torch.softmax(...)) does not help"
        )
    return None


def _info_nce_mistakes(x, y, log_scale):
    scale, target = log_scale.exp(), torch.arange(len(x))
    cosine = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T

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


@exercise(clip.recall_at_k)
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

    right = of(clip.recall_at_k)
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
                of(lambda s, k: clip.recall_at_k(s.T, k))
            ],
            "k is ignored: the right one may be *anywhere* among the first k": [
                of(lambda s, k: clip.recall_at_k(s, 1))
            ],
            "you took the k *least* similar: sort with the largest first": [
                of(lambda s, k: clip.recall_at_k(-s, k))
            ],
            "that is a count of hits; divide by the number of queries": [
                of(lambda s, k: 13 * clip.recall_at_k(s, k))
            ],
            "that is a percentage; a fraction in 0..1 is wanted": [
                of(lambda s, k: 100 * clip.recall_at_k(s, k))
            ],
            "you divided by k (that is precision); a query is a hit or not, whatever k is": [
                of(lambda s, k: clip.recall_at_k(s, k) / k)
            ],
            "you look at one candidate too many: fewer than k may stand before the right one": [
                of(lambda s, k: clip.recall_at_k(s, k + 1))
            ],
            "you look at one candidate too few: the first k include the k-th": [
                of(lambda s, k: clip.recall_at_k(s, k - 1))
            ],
        },
        right,
    )


def _ties(learner, matrix):
    """An encoder that gives every text one vector, and one that gives each odd text the vector of its neighbour."""
    twins = matrix.clone()
    twins[:, 1::2] = twins[:, :-1:2]
    cases = [(tied, k) for tied in (torch.ones_like(matrix), twins) for k in (1, 3, 5)]
    found = torch.tensor([float(learner(tied.clone(), k)) for tied, k in cases])
    if close(found, torch.tensor([float(clip.recall_at_k(tied, k)) for tied, k in cases])):
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


@exercise(clip.class_embeddings)
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
    right = clip.class_embeddings(encode_text, prompts)  # (3, 10)
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
        right,
    )


def _lengths(vectors):
    """Give each row another length, so that a missing normalisation shows."""
    return vectors * (0.5 + 2 * torch.rand(len(vectors), 1))
