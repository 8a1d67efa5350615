"""Notebook 01's checks: the right answers of several styles pass, and each known mistake is called by its name."""

import math

import torch
import torch.nn.functional as F

from vlm_lite.labs import check
from vlm_lite.labs.clip import _image, _step, _text
from vlm_lite.lessons import clip


def unit(x):
    return F.normalize(x, dim=-1)


def cross_entropy(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)))


def both_ways(logits):
    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def by_hand(x, y, s):
    logits = s.exp() * unit(x) @ unit(y).T
    return -(logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()).mean() / 2


def through_softmax(x, y, s):
    p = s.exp() * unit(x) @ unit(y).T
    return -(p.softmax(0).diagonal().log() + p.softmax(1).diagonal().log()).mean() / 2


def constant_scale(x, y, s):
    return both_ways(math.exp(s.item()) * unit(x) @ unit(y).T)


def half_detached(x, y, s):
    return both_ways(s.exp() * unit(x) @ unit(y).T.detach())


def ranks(similarity):
    return (similarity >= similarity.diagonal()[:, None]).sum(1) - 1


def ties_for_you(similarity, k):
    return ((similarity > similarity.diagonal()[:, None]).sum(1) < k).float().mean()


def best_of_the_others(similarity, k):
    others = similarity.masked_fill(torch.eye(len(similarity), dtype=torch.bool), -torch.inf)
    return (others.topk(k).values[:, -1] < similarity.diagonal()).float().mean().item()


def top_k(similarity, k):
    return (
        (similarity.topk(k).indices == torch.arange(len(similarity))[:, None])
        .any(1)
        .float()
        .mean()
        .item()
    )


def single(encode, prompts):
    return unit(torch.cat([encode(each[:1]) for each in prompts]))


def means(encode, prompts, before=unit, after=unit):
    return after(torch.stack([before(encode(each)).mean(0) for each in prompts]))


def same(x):
    return x


class Unfolded(clip.ImageEncoder):
    """The right answer in another style: a convolution's unfolding, and blocks by index."""

    def forward(self, pixels):
        p = self.patch_size
        patches = F.unfold(pixels, p, stride=p).transpose(1, 2)
        token = self.class_embedding[None, None].repeat(len(pixels), 1, 1)
        x = torch.cat((token, self.patch_embedding(patches)), 1) + self.position_embedding[None]
        x = self.input_norm(x)
        for k in range(len(self.blocks)):
            x = self.blocks[k](x)
        return self.output_norm(x)[:, 0]


class Masked(clip.TextEncoder):
    """Likewise: nothing cut off, the EOS picked by a mask."""

    def forward(self, input_ids):
        x = self.token_embedding(input_ids) + self.position_embedding[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x, is_causal=True)
        is_eos = input_ids == self.eos_token_id
        first = is_eos & (is_eos.cumsum(1) == 1)
        return (self.output_norm(x) * first[..., None]).sum(1)


def encoder(base, forward, **how):
    return type("Learner", (base,), {"forward": lambda self, x: forward(self, x, **how)})


def image(**how):
    return encoder(clip.ImageEncoder, _image, **how)


def text(**how):
    return encoder(clip.TextEncoder, _text, **how)


def step(*leave_out):
    return lambda *batch: _step(*batch, leave_out=leave_out)


def with_graph(model, pixels, ids, loss_fn, accelerator, optimizer, scheduler):
    loss = loss_fn(*model(pixels, ids))
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss


def zero_grad_first(model, pixels, ids, loss_fn, accelerator, optimizer, scheduler):
    optimizer.zero_grad()
    loss = with_graph(model, pixels, ids, loss_fn, accelerator, optimizer, scheduler)
    return loss.detach()


def clipped_at_two(model, pixels, ids, loss_fn, accelerator, optimizer, scheduler):
    loss = loss_fn(*model(pixels, ids))
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 2.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.detach()


RIGHT = [
    (check.ImageEncoder, Unfolded),
    (check.TextEncoder, Masked),
    (check.training_step, step()),
    (check.training_step, zero_grad_first),
    (check.info_nce, lambda x, y, s: both_ways(s.exp() * unit(x) @ unit(y).T)),
    (check.info_nce, by_hand),
    (check.recall_at_k, lambda s, k: (ranks(s) < k).float().mean()),
    (check.recall_at_k, best_of_the_others),
    (check.class_embeddings, means),
    (
        check.class_embeddings,
        lambda encode, prompts: unit(torch.stack([unit(encode(p)).sum(0) for p in prompts])),
    ),
]
WRONG = [
    (check.ImageEncoder, image(place=False), "positions are missing"),
    (check.ImageEncoder, image(norms=(False, True)), "input_norm"),
    (check.ImageEncoder, image(norms=(True, False)), "output_norm"),
    (check.ImageEncoder, image(first=False), "behind the patches"),
    (check.ImageEncoder, image(read="mean"), "mean of the patches"),
    (check.ImageEncoder, image(read=-1), "last patch"),
    (check.ImageEncoder, image(read=slice(None)), "all 10 tokens"),
    (check.ImageEncoder, image(pattern="b c (h p) (w q) -> b (w h) (c p q)"), "column by column"),
    (check.ImageEncoder, image(pattern="b c (h p) (w q) -> b (h w) (p q c)"), "channels come"),
    (check.ImageEncoder, image(pattern="b c (p h) (q w) -> b (h w) (c p q)"), "every third"),
    (check.TextEncoder, text(causal=False), "not causal"),
    (check.TextEncoder, text(place=False), "positions are missing"),
    (check.TextEncoder, text(norm=False), "output_norm"),
    (check.TextEncoder, text(read="last"), "last position"),
    (check.TextEncoder, text(read="last eos"), "take the first"),
    (check.TextEncoder, text(read="before"), "token before"),
    (check.TextEncoder, text(read="max"), "highest id"),
    (check.TextEncoder, text(read="first"), "first token"),
    (check.TextEncoder, text(read="mean"), "average"),
    (check.training_step, step("clip"), "not clipped"),
    (check.training_step, step("zero"), "add up"),
    (check.training_step, step("scheduler"), "scheduler.step() is missing"),
    (check.training_step, step("backward"), "no weight has moved"),
    (check.training_step, with_graph, "loss.detach()"),
    (check.training_step, clipped_at_two, "clipped to 2"),
    (
        check.info_nce,
        lambda x, y, s: cross_entropy(s.exp() * unit(x) @ unit(y).T),
        "one-directional, pictures",
    ),
    (
        check.info_nce,
        lambda x, y, s: cross_entropy(s.exp() * unit(y) @ unit(x).T),
        "one-directional, captions",
    ),
    (check.info_nce, lambda x, y, s: 2 * by_hand(x, y, s), "divide by 2"),
    (check.info_nce, lambda x, y, s: both_ways(s.exp() * x @ y.T), "unit length"),
    (check.info_nce, lambda x, y, s: both_ways(s * unit(x) @ unit(y).T), "*logarithm*"),
    (check.info_nce, lambda x, y, s: both_ways(unit(x) @ unit(y).T / s.exp()), "upside down"),
    (check.info_nce, lambda x, y, s: both_ways(unit(x) @ unit(y).T / s), "instead of dividing"),
    (check.info_nce, lambda x, y, s: both_ways(unit(x) @ unit(y).T), "temperature is missing"),
    (check.info_nce, lambda x, y, s: -by_hand(x, y, s), "sign"),
    (check.info_nce, lambda x, y, s: len(x) * by_hand(x, y, s), "summed over the batch"),
    (check.info_nce, lambda x, y, s: s.exp() * unit(x) @ unit(y).T, "one number"),
    (check.info_nce, lambda x, y, s: by_hand(x, y, s) + 0.5, "Check in this order"),
    (check.info_nce, lambda x, y, s: by_hand(x, y, s).item(), "no gradient"),
    (check.info_nce, constant_scale, "logit_scale.exp(), not math.exp"),
    (check.info_nce, half_detached, "no gradient reaches text_embeds"),
    (check.info_nce, through_softmax, "overflows"),
    (check.recall_at_k, lambda s, k: (ranks(s.T) < k).float().mean(), "down the columns"),
    (check.recall_at_k, lambda s, k: (ranks(s) < k).sum(), "count of hits"),
    (check.recall_at_k, lambda s, k: (ranks(s) < k).float().mean() / k, "precision"),
    (check.recall_at_k, lambda s, k: (ranks(s) <= k).float().mean(), "one candidate too many"),
    (check.recall_at_k, lambda s, k: (ranks(s) == 0).float().mean(), "k is ignored"),
    (check.recall_at_k, lambda s, k: (ranks(-s) < k).float().mean(), "*least*"),
    (check.recall_at_k, lambda s, k: 100 * (ranks(s) < k).float().mean(), "percentage"),
    (check.recall_at_k, lambda s, k: ranks(s) < k, "one number"),
    (check.recall_at_k, ties_for_you, "counted for you"),
    (check.recall_at_k, top_k, "the order of the columns decides"),
    (check.class_embeddings, single, "only one prompt"),
    (
        check.class_embeddings,
        lambda encode, prompts: means(encode, prompts, after=same),
        "once more",
    ),
    (
        check.class_embeddings,
        lambda encode, prompts: means(encode, prompts, before=same),
        "*before* averaging",
    ),
    (
        check.class_embeddings,
        lambda encode, prompts: means(encode, prompts, same, same),
        "nothing is normalised",
    ),
    (
        check.class_embeddings,
        lambda encode, prompts: unit(torch.cat([encode(p) for p in prompts])),
        "row a *prompt*",
    ),
    (check.class_embeddings, lambda encode, prompts: [encode(p) for p in prompts], "torch.stack"),
    (check.class_embeddings, lambda encode, prompts: encode(prompts), "list of strings"),
]


def test_an_encoder_that_says_nothing_finds_nothing():
    recall = check.recall_at_k.reference
    for nothing in (torch.ones(9, 9), torch.full((9, 9), torch.nan)):
        assert [float(recall(nothing, k)) for k in (1, 5, 8)] == [0, 0, 0]
    assert recall(torch.eye(9), 1) == 1 and recall(torch.eye(9).fill_diagonal_(torch.nan), 5) == 0
