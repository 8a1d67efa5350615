"""Notebook 02's checks: the right answers of several styles pass, and each known mistake is called by its name."""

import contextlib

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.labs import check
from vlm_lite.lessons import vit as lesson


def cut(pattern, split="b c (rows p) (columns q)"):
    return lambda images, p: rearrange(images, f"{split} -> {pattern}", p=p, q=p)


def changed(base, **methods):
    """A subclass of a module of the lesson with some methods replaced."""
    return type(base.__name__, (base,), methods)


def attention(order="(three heads h)", scale=None, dim=-1, merge="(heads h)", keep=True, **what):
    def forward(self, x):
        sizes = {"three": 3, "heads": self.num_heads}
        q, k, v = rearrange(self.qkv(x), f"b n {order} -> three b heads n h", **sizes)
        scores = torch.einsum("bhid,bhjd->bhij", *((k, q) if what.get("swap") else (q, k)))
        scores = scores / (scale or q.shape[-1] ** 0.5)
        if what.get("causal"):
            scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
        weights = torch.softmax(scores, dim=dim)
        self.weights = {True: weights.detach(), False: None, "scores": scores, "graph": weights}[
            keep
        ]
        mixed = (weights.mT if what.get("transposed") else weights) @ (k if what.get("keys") else v)
        if what.get("bare"):
            return self.proj(mixed.reshape(x.shape))
        mixed = rearrange(mixed, f"b heads n h -> b n {merge}")
        return mixed if what.get("no_proj") else self.proj(mixed)

    return changed(lesson.MultiHeadAttention, forward=forward)


class ByChunks(nn.Module):
    """Multi-head attention as PyTorch's fused call, and the weights beside it."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.heads, self.qkv, self.proj = (
            num_heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x):
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        self.weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).detach()
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class OtherNames(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))


def block(steps=("attn", "mlp"), norms="12", act=F.gelu, how=None):
    """A block as a loop over its steps, with one thing done in another way; norm 0 is none."""

    def forward(self, x):
        parts = {"attn": self.attn, "mlp": lambda h: self.mlp.fc2(act(self.mlp.fc1(h)))}
        start = x
        for step, number in zip(steps, norms, strict=True):
            norm = getattr(self, f"norm{number}", lambda h: h)
            x = norm(x) if how == "in place" else x
            given = start if how == "same x" else x
            added = parts[step](given if how in ("post", "in place") else norm(given))
            x = added if how == "no residual" else x + added
            x = norm(x) if how == "post" else x
        return x

    return changed(lesson.Block, forward=forward)


def built(**parts):
    """A block with other parts in it."""

    def __init__(self, *sizes):
        lesson.Block.__init__(self, *sizes)
        for name, part in parts.items():
            setattr(self, name, part)

    return changed(lesson.Block, __init__=__init__)


def features(
    *, order="cls", positions="in", pre="in", blocks=True, norm=True, bias=True, back=None
):
    """`forward_features` of a ViT, its patches embedded by the convolution, with one thing done in another way."""

    def forward_features(self, pixels):
        x = self.patch_embed["proj"](pixels)
        x = x if bias else x - self.patch_embed["proj"].bias[:, None, None]
        x = (x.transpose(2, 3) if back == "columns" else x).flatten(2).transpose(1, 2)
        if back == "no class token":
            return self.norm(self.blocks(self.norm_pre(x + self.pos_embed[:, 1:])))
        cls = self.cls_token.expand(len(x), -1, -1)
        if positions == "patches":
            x = x + self.pos_embed[:, 1:]
        x = torch.cat([cls, x] if order == "cls" else [x, cls], dim=1)
        x = x + self.pos_embed if positions == "in" else x
        x = self.norm_pre(x) if pre else x
        x = x + self.pos_embed if positions == "after norm_pre" else x
        x = self.blocks(x) if blocks is True else x if blocks is False else self.blocks[0](x)
        x = x + self.pos_embed if positions == "last" else x
        x = self.norm(x) if norm else x
        return x[:, 0] if back == "class token alone" else x

    return changed(lesson.ViT, forward_features=forward_features)


class MeanPooled(lesson.ViT):
    def forward(self, pixels):
        return self.head(self.forward_features(pixels)[:, 1:].mean(dim=1))


def step(*what, clip=1.0, reduction="mean"):
    def training_step(model, pixels, labels, optimizer, scheduler, accelerator):
        if "zero first" in what:
            optimizer.zero_grad()
        with contextlib.nullcontext() if "outside" in what else accelerator.autocast():
            logits = model(pixels)
            logits = logits.softmax(-1) if "probabilities" in what else logits
            loss = F.cross_entropy(logits, labels, reduction=reduction)
        loss.backward() if "own backward" in what else accelerator.backward(loss)
        if clip:
            accelerator.clip_grad_norm_(model.parameters(), clip)
        if "early zero" in what:
            optimizer.zero_grad()
        if "no step" not in what:
            optimizer.step()
        if "no schedule" not in what:
            scheduler.step()
        if not {"zero first", "no zero"} & set(what):
            optimizer.zero_grad()
        return loss.item() if "number" in what else loss if "graph" in what else loss.detach()

    return training_step


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


RIGHT = {
    check.patchify: [
        cut("b (rows columns) (c p q)"),
        lambda images, p: F.unfold(images, p, stride=p).mT,
    ],
    check.MultiHeadAttention: [attention(), ByChunks],
    check.Block: [block()],
    check.ViT: [features()],
    check.vit_training_step: [step(), step("zero first")],
    check.attention_rollout: [rolled, from_the_end],
}
WRONG = {
    check.patchify: {
        "bare reshape": lambda x, p: x.reshape(len(x), -1, x.shape[1] * p * p),
        "column by column": cut("b (columns rows) (c p q)"),
        "channels come last": cut("b (rows columns) (p q c)"),
        "transposed": cut("b (rows columns) (c q p)"),
        "every third pixel": cut("b (rows columns) (c p q)", "b c (p rows) (q columns)"),
        "one of N": cut("b rows columns (c p q)"),
        "shape (2, 48, 9)": cut("b (c p q) (rows columns)"),
        "no mistake we know": lambda x, p: cut("b (rows columns) (c p q)")(x, p) + 1,
        "grey": lambda x, p: cut("b (rows columns) (c p q)")(x, 4) if len(x) == 2 else x.flatten(2),
    },
    check.MultiHeadAttention: {
        "left out the division": attention(scale=1.0),
        "divide the scores by h": attention(scale=8.0),
        "*whole* width": attention(scale=24**0.5),
        "over the queries": attention(dim=-2),
        "(three, heads, h)": attention(order="(heads three h)"),
        "a head is a run": attention(order="(three h heads)"),
        "side by side is (heads, h)": attention(merge="(h heads)"),
        "not side by side": attention(bare=True),
        "exchanged": attention(swap=True),
        "causal": attention(causal=True),
        "transposed": attention(transposed=True),
        "*values* v": attention(keys=True),
        "`proj` is missing": attention(no_proj=True),
        "self.weights is still None": attention(keep=False),
        "does not hold": attention(keep="scores"),
        "detach": attention(keep="graph"),
        "parameter proj.bias is missing": OtherNames,
        "returned None": changed(lesson.MultiHeadAttention, forward=lambda self, x: None),
    },
    check.Block: {
        "*post*-norm": block(how="post"),
        "residuals are missing": block(how="no residual"),
        "norms are missing": block(norms="00"),
        "normalise x itself": block(how="in place"),
        "both steps read the same x": block(how="same x"),
        "order is turned": block(("mlp", "attn")),
        "norm of its own": block(norms="11"),
        "norms are exchanged": block(norms="21"),
        "ReLU": block(act=F.relu),
        "no activation": block(act=lambda x: x),
        "another eps": built(norm1=nn.LayerNorm(24), norm2=nn.LayerNorm(24)),
        "norm2.bias is missing": built(norm2=None),
        "mlp.fc1.weight has shape (48, 24)": built(
            mlp=nn.ModuleDict({"fc1": nn.Linear(24, 48), "fc2": nn.Linear(48, 24)})
        ),
        "MLP is missing": block(["attn"], "1"),
    },
    check.ViT: {
        "position embedding is missing": features(positions=None),
        "class token has no position": features(positions="patches"),
        "they come before it": features(positions="after norm_pre"),
        "attention must see them": features(positions="last"),
        "class token stands last": features(order="last"),
        "`norm_pre` is missing": features(pre=None),
        "last `norm` is missing": features(norm=False),
        "blocks are missing": features(blocks=False),
        "only one of the blocks": features(blocks=1),
        "leaves out its bias": features(bias=False),
        "column by column": features(back="columns"),
        "return all tokens": features(back="class token alone"),
        "class token is missing": features(back="no class token"),
        "`forward` is not the head": MeanPooled,
    },
    check.vit_training_step: {
        "gradients add up": step("no zero"),
        "not clipped": step(clip=None),
        "scheduler.step() is missing": step("no schedule"),
        "did not change": step("early zero"),
        "the weights did not change": step("no step"),
        "*logits*": step("probabilities"),
        "take the mean": step(reduction="sum"),
        "loss.detach()": step("graph"),
        "accelerator.backward": step("own backward"),
        "outside": step("outside"),
        "is a float": step("number"),
        "no mistake we know": step(clip=0.1),
    },
    check.attention_rollout: {
        "residual is missing": lambda a: rolled(a, residual=False),
        "wrong order": lambda a: rolled(a, backwards=True),
        "sum to 2": lambda a: rolled(a, half=False),
        "element by element": elementwise,
        "averaged the blocks": lambda a: torch.stack(a).mean(dim=(0, 2)),
        "one block alone": lambda a: a[-1].mean(dim=1),
        "strongest head": strongest,
        "each block counts once": lambda a: rolled(a[:-1]),
        "transposed": lambda a: rolled(a).transpose(-2, -1),
        "heads are still apart": each_head,
    },
}
