"""Notebook 02's checks: the right answers of several styles pass, and each known mistake is called by its name."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.labs import check
from vlm_lite.lessons import vit as lesson


def cut(pattern, split="b c (rows p) (columns q)"):
    return lambda images, p: rearrange(images, f"{split} -> {pattern}", p=p, q=p)


def unfolded(images, p):
    return F.unfold(images, kernel_size=p, stride=p).transpose(1, 2)


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


def block(forward):
    return changed(lesson.Block, forward=forward)


def sequential(self, x):
    middle = torch.add(x, self.attn(self.norm1(x)))
    hidden = F.gelu(self.mlp.fc1(self.norm2(middle)))
    return torch.add(middle, self.mlp.fc2(hidden))


def post_norm(self, x):
    x = self.norm1(x + self.attn(x))
    return self.norm2(x + self.mlp(x))


def in_place_of_x(self, x):
    x = self.norm1(x)
    x = x + self.attn(x)
    x = self.norm2(x)
    return x + self.mlp(x)


def no_norms(self, x):
    x = x + self.attn(x)
    return x + self.mlp(x)


def mlp_first(self, x):
    x = x + self.mlp(self.norm1(x))
    return x + self.attn(self.norm2(x))


def exchanged(self, x):
    x = x + self.attn(self.norm2(x))
    return x + self.mlp(self.norm1(x))


def one_norm(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm1(x))


def with_activation(function):
    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(function(self.mlp.fc1(self.norm2(x))))

    return block(forward)


class DefaultEps(lesson.Block):
    def __init__(self, width, num_heads):
        super().__init__(width, num_heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)


class OneNorm(lesson.Block):
    def __init__(self, width, num_heads):
        super().__init__(width, num_heads)
        del self.norm2


class NarrowMLP(lesson.Block):
    def __init__(self, width, num_heads):
        super().__init__(width, num_heads)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)


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


def step(
    *,
    probabilities=False,
    reduction="mean",
    clip=1.0,
    zero=True,
    schedule=True,
    detach=True,
    **what,
):
    def training_step(model, pixels, labels, optimizer, scheduler, accelerator):
        if what.get("zero_first"):
            optimizer.zero_grad()
        if what.get("outside"):
            logits = model(pixels)
        with accelerator.autocast():
            logits = logits if what.get("outside") else model(pixels)
            logits = logits.softmax(-1) if probabilities else logits
            loss = F.cross_entropy(logits, labels, reduction=reduction)
        loss.backward() if what.get("own_backward") else accelerator.backward(loss)
        if clip:
            accelerator.clip_grad_norm_(model.parameters(), clip)
        if what.get("early_zero"):
            optimizer.zero_grad()
        if not what.get("no_step"):
            optimizer.step()
        if schedule:
            scheduler.step()
        if zero:
            optimizer.zero_grad()
        return loss.item() if what.get("number") else loss.detach() if detach else loss

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


RIGHT = [
    (check.patchify, cut("b (rows columns) (c p q)")),
    (check.patchify, unfolded),
    (check.MultiHeadAttention, attention()),
    (check.MultiHeadAttention, ByChunks),
    (check.Block, block(sequential)),
    (check.ViT, features()),
    (check.vit_training_step, step()),
    (check.vit_training_step, step(zero=False, zero_first=True)),
    (check.attention_rollout, rolled),
    (check.attention_rollout, from_the_end),
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
    (check.MultiHeadAttention, attention(scale=1.0), "left out the division"),
    (check.MultiHeadAttention, attention(scale=8.0), "divide the scores by h"),
    (check.MultiHeadAttention, attention(scale=24**0.5), "*whole* width"),
    (check.MultiHeadAttention, attention(dim=-2), "over the queries"),
    (check.MultiHeadAttention, attention(order="(heads three h)"), "(three, heads, h)"),
    (check.MultiHeadAttention, attention(order="(three h heads)"), "a head is a run"),
    (check.MultiHeadAttention, attention(merge="(h heads)"), "side by side is (heads, h)"),
    (check.MultiHeadAttention, attention(bare=True), "not side by side"),
    (check.MultiHeadAttention, attention(swap=True), "exchanged"),
    (check.MultiHeadAttention, attention(causal=True), "causal"),
    (check.MultiHeadAttention, attention(transposed=True), "transposed"),
    (check.MultiHeadAttention, attention(keys=True), "*values* v"),
    (check.MultiHeadAttention, attention(no_proj=True), "`proj` is missing"),
    (check.MultiHeadAttention, attention(keep=False), "self.weights is still None"),
    (check.MultiHeadAttention, attention(keep="scores"), "does not hold"),
    (check.MultiHeadAttention, attention(keep="graph"), "detach"),
    (check.MultiHeadAttention, OtherNames, "parameter proj.bias is missing"),
    (
        check.MultiHeadAttention,
        changed(lesson.MultiHeadAttention, forward=lambda self, x: None),
        "returned None",
    ),
    (check.Block, block(post_norm), "*post*-norm"),
    (check.Block, block(lambda s, x: s.mlp(s.norm2(s.attn(s.norm1(x))))), "residuals are missing"),
    (check.Block, block(no_norms), "norms are missing"),
    (check.Block, block(in_place_of_x), "normalise x itself"),
    (
        check.Block,
        block(lambda s, x: x + s.attn(s.norm1(x)) + s.mlp(s.norm2(x))),
        "both steps read the same x",
    ),
    (check.Block, block(mlp_first), "order is turned"),
    (check.Block, block(one_norm), "norm of its own"),
    (check.Block, block(exchanged), "norms are exchanged"),
    (check.Block, with_activation(F.relu), "ReLU"),
    (check.Block, with_activation(lambda x: x), "no activation"),
    (check.Block, DefaultEps, "another eps"),
    (check.Block, OneNorm, "norm2.bias is missing"),
    (check.Block, NarrowMLP, "mlp.fc1.weight has shape (48, 24)"),
    (check.Block, block(lambda s, x: x + s.attn(s.norm1(x))), "MLP is missing"),
    (check.ViT, features(positions=None), "position embedding is missing"),
    (check.ViT, features(positions="patches"), "class token has no position"),
    (check.ViT, features(positions="after norm_pre"), "they come before it"),
    (check.ViT, features(positions="last"), "attention must see them"),
    (check.ViT, features(order="last"), "class token stands last"),
    (check.ViT, features(pre=None), "`norm_pre` is missing"),
    (check.ViT, features(norm=False), "last `norm` is missing"),
    (check.ViT, features(blocks=False), "blocks are missing"),
    (check.ViT, features(blocks=1), "only one of the blocks"),
    (check.ViT, features(bias=False), "leaves out its bias"),
    (check.ViT, features(back="columns"), "column by column"),
    (check.ViT, features(back="class token alone"), "return all tokens"),
    (check.ViT, features(back="no class token"), "class token is missing"),
    (check.ViT, MeanPooled, "`forward` is not the head"),
    (check.vit_training_step, step(zero=False), "gradients add up"),
    (check.vit_training_step, step(clip=None), "not clipped"),
    (check.vit_training_step, step(schedule=False), "scheduler.step() is missing"),
    (check.vit_training_step, step(early_zero=True), "did not change"),
    (check.vit_training_step, step(no_step=True), "did not change"),
    (check.vit_training_step, step(probabilities=True), "*logits*"),
    (check.vit_training_step, step(reduction="sum"), "take the mean"),
    (check.vit_training_step, step(detach=False), "loss.detach()"),
    (check.vit_training_step, step(own_backward=True), "accelerator.backward"),
    (check.vit_training_step, step(outside=True), "outside"),
    (check.vit_training_step, step(number=True), "is a float"),
    (check.vit_training_step, step(clip=0.1), "no mistake we know"),
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
]
