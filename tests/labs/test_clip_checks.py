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


def written_out(*what, clip=1.0):
    def training_step(model, pixels, ids, loss_fn, accelerator, optimizer, scheduler):
        if "zero first" in what:
            optimizer.zero_grad()
        loss = loss_fn(*model(pixels, ids))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        return loss if "graph" in what else loss.detach()

    return training_step


RIGHT = {
    check.ImageEncoder: [Unfolded],
    check.TextEncoder: [Masked],
    check.training_step: [step(), written_out("zero first")],
    check.info_nce: [lambda x, y, s: both_ways(s.exp() * unit(x) @ unit(y).T), by_hand],
    check.recall_at_k: [lambda s, k: (ranks(s) < k).float().mean(), best_of_the_others],
    check.class_embeddings: [
        means,
        lambda encode, prompts: unit(torch.stack([unit(encode(p)).sum(0) for p in prompts])),
    ],
}
WRONG = {
    check.ImageEncoder: {
        "positions are missing": image(place=False),
        "input_norm": image(norms=(False, True)),
        "output_norm": image(norms=(True, False)),
        "behind the patches": image(first=False),
        "mean of the patches": image(read="mean"),
        "last patch": image(read=-1),
        "all 10 tokens": image(read=slice(None)),
        "column by column": image(pattern="b c (h p) (w q) -> b (w h) (c p q)"),
        "channels come": image(pattern="b c (h p) (w q) -> b (h w) (p q c)"),
        "every third": image(pattern="b c (p h) (q w) -> b (h w) (c p q)"),
    },
    check.TextEncoder: {
        "not causal": text(causal=False),
        "positions are missing": text(place=False),
        "output_norm": text(norm=False),
        "last position": text(read="last"),
        "take the first": text(read="last eos"),
        "token before": text(read="before"),
        "highest id": text(read="max"),
        "first token": text(read="first"),
        "average": text(read="mean"),
    },
    check.training_step: {
        "not clipped": step("clip"),
        "add up": step("zero"),
        "scheduler.step() is missing": step("scheduler"),
        "no weight has moved": step("backward"),
        "loss.detach()": written_out("graph"),
        "clipped to 2": written_out(clip=2.0),
    },
    check.info_nce: {
        "one-directional, pictures": lambda x, y, s: cross_entropy(s.exp() * unit(x) @ unit(y).T),
        "one-directional, captions": lambda x, y, s: cross_entropy(s.exp() * unit(y) @ unit(x).T),
        "divide by 2": lambda x, y, s: 2 * by_hand(x, y, s),
        "unit length": lambda x, y, s: both_ways(s.exp() * x @ y.T),
        "*logarithm*": lambda x, y, s: both_ways(s * unit(x) @ unit(y).T),
        "upside down": lambda x, y, s: both_ways(unit(x) @ unit(y).T / s.exp()),
        "instead of dividing": lambda x, y, s: both_ways(unit(x) @ unit(y).T / s),
        "temperature is missing": lambda x, y, s: both_ways(unit(x) @ unit(y).T),
        "sign": lambda x, y, s: -by_hand(x, y, s),
        "summed over the batch": lambda x, y, s: len(x) * by_hand(x, y, s),
        "one number": lambda x, y, s: s.exp() * unit(x) @ unit(y).T,
        "Check in this order": lambda x, y, s: by_hand(x, y, s) + 0.5,
        "no gradient": lambda x, y, s: by_hand(x, y, s).item(),
        "logit_scale.exp(), not math.exp": constant_scale,
        "no gradient reaches text_embeds": half_detached,
        "overflows": through_softmax,
    },
    check.recall_at_k: {
        "down the columns": lambda s, k: (ranks(s.T) < k).float().mean(),
        "count of hits": lambda s, k: (ranks(s) < k).sum(),
        "precision": lambda s, k: (ranks(s) < k).float().mean() / k,
        "one candidate too many": lambda s, k: (ranks(s) <= k).float().mean(),
        "k is ignored": lambda s, k: (ranks(s) == 0).float().mean(),
        "*least*": lambda s, k: (ranks(-s) < k).float().mean(),
        "percentage": lambda s, k: 100 * (ranks(s) < k).float().mean(),
        "one number": lambda s, k: ranks(s) < k,
        "counted for you": ties_for_you,
        "the order of the columns decides": top_k,
    },
    check.class_embeddings: {
        "only one prompt": single,
        "once more": lambda encode, prompts: means(encode, prompts, after=same),
        "*before* averaging": lambda encode, prompts: means(encode, prompts, before=same),
        "nothing is normalised": lambda encode, prompts: means(encode, prompts, same, same),
        "row a *prompt*": lambda encode, prompts: unit(torch.cat([encode(p) for p in prompts])),
        "torch.stack": lambda encode, prompts: [encode(p) for p in prompts],
        "list of strings": lambda encode, prompts: encode(prompts),
    },
}


def test_an_encoder_that_says_nothing_finds_nothing():
    recall = check.recall_at_k.reference
    for nothing in (torch.ones(9, 9), torch.full((9, 9), torch.nan)):
        assert [float(recall(nothing, k)) for k in (1, 5, 8)] == [0, 0, 0]
    assert recall(torch.eye(9), 1) == 1 and recall(torch.eye(9).fill_diagonal_(torch.nan), 5) == 0
