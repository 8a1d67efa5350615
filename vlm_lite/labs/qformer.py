"""The checks of notebook 03: attention to a source, a Q-Former's layer and forward pass, labels, generation, a step.

Each check first sees whether the learner's result is right; if not, whether it equals what a known mistake would give
on the same inputs and weights. The references are the notebook's own solutions, exported to `vlm_lite.lessons`.
Shapes: B rows, N patches, Q queries of width D, H heads of width h = D / H, T tokens.
"""

import contextlib
import copy
import warnings
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, GPT2Config, GPT2LMHeadModel

from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.labs.core import (
    close,
    exercise,
    explain,
    generic,
    random_weights,
    shape_problem,
    with_weights_of,
)
from vlm_lite.lessons import qformer, vlm
from vlm_lite.models.layout import from_blip2


def _attended(reference, x, source, *, scale=None, dim=-1, merge="heads h", change=None):
    """(output, weights) of attention with the weights of `reference`, with one thing done in another way."""
    heads, width = reference.num_heads, reference.query.out_features
    own = {"self": x, "source": source}
    keys = own["self" if change == "keys of x" else "source"]
    values = own["self" if change == "values of x" else "source"]
    split = f"b n ({'h heads' if change == 'stripes' else 'heads h'}) -> b heads n h"
    q, k, v = (
        rearrange(part, split, heads=heads)
        for part in (reference.query(x), reference.key(keys), reference.value(values))
    )
    scores = q @ k.transpose(-2, -1) / ((width // heads) ** 0.5 if scale is None else scale)
    if change == "causal":
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    weights = scores.softmax(dim=dim)
    mixed = weights @ (k if change == "keys" else v)
    if change == "not merged":
        mixed = mixed.reshape(len(x), -1, width)
    else:
        mixed = rearrange(mixed, f"b heads n h -> b n ({merge})")
    return mixed if change == "no output" else reference.output(mixed), weights


@exercise(qformer.MultiHeadAttention)
def CrossAttention(learner):
    """Random weights, queries and patches of one width, three heads: the output, and the weights kept in `self.weights`."""
    reference = random_weights(qformer.MultiHeadAttention(24, 3, 24))
    x, source = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    module, problem = with_weights_of(learner, reference, 24, 3, 24)
    if problem:
        return problem
    with torch.no_grad():
        right, right_weights = reference(x, source), reference.weights
        found = module(x.clone(), source.clone())
        if found is None:
            return "forward returned None; is the `return` line missing?"
        if problem := shape_problem(found, right.shape):
            return problem
        if not close(found, right):
            mistakes = {
                "you left out the division of the scores by √h, where h is the width of one head": {
                    "scale": 1
                },
                "you divide the scores by h; divide by its root, √h": {"scale": 8},
                "you divide by the root of the *whole* width D; each head has h = D / H": {
                    "scale": 24**0.5
                },
                "your softmax runs over the queries; the weights of each query must sum to 1 over the source: dim=-1": {
                    "dim": -2
                },
                "you split the heads as (h, heads); a head is a run of neighbouring channels: (heads, h)": {
                    "change": "stripes"
                },
                "the heads are merged as (h, heads); side by side is (heads, h)": {
                    "merge": "h heads"
                },
                "the heads are not side by side: bring the token's axis before the heads', then merge": {
                    "change": "not merged"
                },
                "your attention is causal; queries are a set, and each may attend to all of the source": {
                    "change": "causal"
                },
                "the keys come from x; they come from the source, like the values": {
                    "change": "keys of x"
                },
                "the values come from x; they come from the source, like the keys": {
                    "change": "values of x"
                },
                "the weights average the keys; they must average the *values* v": {
                    "change": "keys"
                },
                "the projection `output` is missing": {"change": "no output"},
            }
            values = {
                said: [_attended(reference, x, source, **how)[0]] for said, how in mistakes.items()
            }
            values[
                "x and the source are exchanged: x asks (query), the source answers (key, value)"
            ] = [reference(source, x)]
            values["it attends to x alone: keys and values come from the source"] = [
                reference(x, x)
            ]
            return explain(found, values, right)
        if not close(module(x, source[:, :3]), reference(x, source[:, :3])):
            return "it is right only where the source is as long as x: take N from the source"
    if module.weights is None:
        return (
            "the output is right, but self.weights is still None: keep the attention weights there"
        )
    module(x, source)
    if problem := shape_problem(module.weights, right_weights.shape, "self.weights"):
        return problem
    if not close(module.weights, right_weights):
        return "the output is right, but self.weights does not hold softmax(q kᵀ / √h)"
    if module.weights.requires_grad:
        return "detach what you keep in self.weights, or it holds the whole graph"
    return None


def _layer(part, queries, patches, *, change=None):
    """A Q-Former layer with the weights of `part`, with one thing done in another way."""
    steps = {
        "self": lambda z: part.self_attention(z, patches if change == "self to patches" else z),
        "cross": lambda z: part.cross_attention(z, z if change == "cross to queries" else patches),
        "mlp": lambda z: part.mlp_out(
            {"no gelu": lambda y: y, "relu": F.relu}.get(change, F.gelu)(part.mlp_in(z))
        ),
    }
    norms = {"self": part.self_norm, "cross": part.cross_norm, "mlp": part.mlp_norm}
    order = {
        "cross first": ("cross", "self", "mlp"),
        "no self": ("cross", "mlp"),
        "no cross": ("self", "mlp"),
        "no mlp": ("self", "cross"),
    }
    z = queries
    for name in order.get(change, ("self", "cross", "mlp")):
        if change == "pre-norm":
            z = z + steps[name](norms[name](z))
        elif change == "no residual":
            z = norms[name](steps[name](z))
        elif change == "no norm":
            z = z + steps[name](z)
        else:
            z = norms[name](z + steps[name](z))
    return z


@exercise(qformer.QFormerLayer)
def QFormerLayer(learner):
    """Random weights, queries and patches of one width: a layer with cross-attention, and one without."""
    sizes = (16, 2, 24, 16)
    reference = random_weights(qformer.QFormerLayer(*sizes))
    queries, patches = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    module, problem = with_weights_of(learner, reference, *sizes)
    if problem:
        return problem
    with torch.no_grad():
        right, found = reference(queries, patches), module(queries.clone(), patches.clone())
        if found is None:
            return "forward returned None; is the `return` line missing?"
        if problem := shape_problem(found, right.shape):
            return problem
        if not close(found, right):
            mistakes = {
                "you normalise before each step, as a ViT does; a Q-Former normalises the sum (post-norm)": "pre-norm",
                "the residuals are missing: each step is *added* to the queries": "no residual",
                "the norms are missing: each sum is normalised by the step's own LayerNorm": "no norm",
                "cross-attention comes first in yours; the order is self-attention, cross-attention, MLP": "cross first",
                "self-attention has the patches as its source; there the source is the queries": "self to patches",
                "cross-attention has the queries as its source, so the image never comes in": "cross to queries",
                "self-attention is missing": "no self",
                "cross-attention is missing": "no cross",
                "the MLP is missing": "no mlp",
                "the MLP has no activation between its layers: GELU": "no gelu",
                "the activation of the MLP is ReLU; a Q-Former has GELU": "relu",
            }
            values = {
                said: [_layer(reference, queries, patches, change=how)]
                for said, how in mistakes.items()
            }
            return explain(found, values, right)
        reference = random_weights(qformer.QFormerLayer(*sizes, cross=False))
        module, problem = with_weights_of(learner, reference, *sizes, cross=False)
        if problem:
            return problem
        if not close(module(queries, patches), reference(queries, patches)):
            return "right with cross-attention, wrong with cross=False: there the second step is left out"
    return None


@exercise(qformer.QFormer)
def QFormer(learner):
    """Random weights, two layers, one of them without cross-attention, and patches of three images."""
    sizes = dict(num_query_tokens=5, width=16, num_layers=2, num_heads=2, mlp_width=24)
    sizes["cross_attention_frequency"] = 2
    reference, patches = random_weights(qformer.QFormer(12, **sizes)), torch.randn(3, 7, 12)
    module, problem = with_weights_of(learner, reference, 12, **sizes)
    if problem:
        return problem
    first, second = reference.layers
    with torch.no_grad():
        right, found = reference(patches), module(patches.clone())
        if found is None:
            return "forward returned None; is the `return` line missing?"
        if isinstance(found, torch.Tensor) and tuple(found.shape) == (5, 16):
            return (
                "the batch axis is missing: every image has its own copy of the queries, (B, Q, D)"
            )
        if problem := shape_problem(found, right.shape):
            return problem
        bare = reference.query_tokens.expand(3, -1, -1)
        queries = reference.input_norm(bare)
        mistakes = {
            "`input_norm` is missing: it normalises the queries before the first layer": [
                second(first(bare, patches), patches)
            ],
            "`input_norm` comes before the layers, not after them": [
                reference.input_norm(second(first(bare, patches), patches))
            ],
            "only one of the layers runs, or the second begins with the queries again": [
                first(queries, patches),
                second(queries, patches),
            ],
            "the layers run in the wrong order": [first(second(queries, patches), patches)],
            "the layers are missing": [queries],
            "every image gets the answer of the first: each must meet its own patches": [
                right[:1].expand_as(right)
            ],
        }
        return None if close(found, right) else explain(found, mistakes, right)


def same_as_blip2(learner):
    """Copy the weights of a small `transformers.Blip2QFormerModel` into a QFormer, and prove that both give the same.

    AssertionError where the outputs differ.
    """
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    config = Blip2QFormerConfig(**sizes, encoder_hidden_size=24, cross_attention_frequency=2)
    theirs = random_weights(Blip2QFormerModel(config))
    sizes = dict(num_query_tokens=8, width=32, num_layers=3, num_heads=4, mlp_width=64)
    mine = learner(24, **sizes, cross_attention_frequency=2).eval()
    queries, patches = torch.randn(8, 32), torch.randn(2, 16, 24)
    mine.load_state_dict({"query_tokens": queries, **from_blip2(theirs.state_dict())})
    with torch.no_grad():
        found = mine(patches)
        right = theirs(queries.expand(2, -1, -1), encoder_hidden_states=patches).last_hidden_state
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    gap = (found - right).abs().max()
    shapes = f"{tuple(patches.shape)} -> {tuple(found.shape)}"
    print(f"equals transformers.Blip2QFormerModel: {shapes}, largest difference {gap:.0e}")


@torch.no_grad()
def same_as_transformers(model, features, input_ids, attention_mask, labels):
    """Prove that a VLM's loss and logits are those of `language_model(inputs_embeds, labels)`; AssertionError if not."""
    inputs = model.inputs(features, input_ids, attention_mask)
    num_prefix = inputs["inputs_embeds"].shape[1] - input_ids.shape[1]
    model.language_model.loss_type = "ForCausalLM"  # its default; named, so that it says nothing
    output = model.language_model(**inputs, labels=F.pad(labels, (num_prefix, 0), value=-100))
    batch = features, input_ids, attention_mask
    loss, logits = model(*batch, labels), model(*batch)
    right = output.loss, output.logits[:, num_prefix:]
    torch.testing.assert_close((loss, logits), right, atol=1e-4, rtol=1e-4)
    gap = (logits - right[1]).abs().max()
    print(f"loss {loss:.4f}, by transformers {output.loss:.4f}; logits differ by up to {gap:.0e}")


def alone_as_together(model, features, prompts):
    """Prove that the answers of a batch are those that each prompt gets alone; AssertionError naming one where not."""
    together = model.generate(features, prompts)
    for k, prompt in enumerate(prompts):
        (alone,) = model.generate(features[k : k + 1], [prompt])
        assert together[k] == alone, f"{prompt!r}: {together[k]!r} in the batch, {alone!r} alone"
    lengths = {len(model.tokenizer(prompt)["input_ids"]) for prompt in prompts}
    print(f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens: together as alone")


ROWS = [
    [("question: what colour is the circle? answer:", "red")],
    [("caption:", "a large blue star."), ("question: is there a star? answer:", "yes")],
    [("question: how many shapes are there? answer:", "2")],
]


def _batch(tokenizer, rows, *, change=None):
    """`build_batch` with one thing done in another way."""
    eos = pad = tokenizer.eos_token_id
    ids, labels = [], []
    for turns in rows:
        ids.append([])
        labels.append([])
        for prompt, answer in turns[:1] if change == "first turn" else turns:
            space = "" if change == "no space" else " "
            prompt, answer = tokenizer([prompt, space + answer], add_special_tokens=False)[
                "input_ids"
            ]
            ends = [] if change == "no eos" else [eos]
            ids[-1] += prompt + answer + ends
            labels[-1] += prompt if change == "prompt" else [-100] * len(prompt)
            labels[-1] += answer + ([-100] if change == "eos unlabelled" else ends)
        if change == "shifted":
            labels[-1] = labels[-1][1:] + [-100]
    length = max(map(len, ids))

    def fill(row, value):
        missing = [value] * (length - len(row))
        return missing + row if change == "left" else row + missing

    mask = torch.tensor([fill([1] * len(row), 1 if change == "ones" else 0) for row in ids])
    labels = [fill(row, {"pad label": pad, "zero label": 0}.get(change, -100)) for row in labels]
    ids, labels = torch.tensor([fill(row, pad) for row in ids]), torch.tensor(labels)
    if change == "mask by pad":
        mask = (ids != pad).long()
    if change == "labels by pad":
        labels = labels.masked_fill(ids == pad, -100)
    return ids, mask, labels


@exercise(vlm.build_batch)
def build_batch(learner):
    """Three rows of one and two turns, with a tokenizer whose padding token is EOS, as people use GPT-2's."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    right, found = vlm.build_batch(tokenizer, ROWS), learner(tokenizer, ROWS)
    if not isinstance(found, tuple | list) or len(found) != 3:
        return "return three tensors: input_ids, attention_mask, labels"
    for name, each in zip(("input_ids", "attention_mask", "labels"), found, strict=True):
        if not isinstance(each, torch.Tensor) or each.ndim != 2:
            return f"{name} is no tensor of shape (B, T)"
    if close(tuple(each.long() for each in found), right):
        return None
    mistakes = {
        "you mask by `ids == pad`, and the true EOS is masked with the padding: mask by length": "mask by pad",
        "the labels lost the EOS where padding is EOS too: the model would never learn to stop": "labels by pad",
        "the attention mask is 1 everywhere; it is 0 on padding": "ones",
        "padding has a label, so the model would be trained to say it: -100": "pad label",
        "padding has the label 0, which is a token like any other: -100": "zero label",
        "you pad on the left; here padding follows the row": "left",
        "the prompts are in the loss: the model would learn to ask the questions; give them -100": "prompt",
        "you shifted the labels: the loss compares position t with the prediction at t - 1 by itself": "shifted",
        "no EOS ends an answer: add its id behind each answer, in the ids and in the labels": "no eos",
        "the EOS has no label: a model that is not told to stop never does": "eos unlabelled",
        "only the first turn of each row is there; a row may hold several": "first turn",
    }
    for said, how in mistakes.items():
        if close(tuple(each.long() for each in found), _batch(tokenizer, ROWS, change=how)):
            return said
    for name, mine, its in zip(
        ("input_ids", "attention_mask", "labels"), found, right, strict=True
    ):
        if problem := shape_problem(mine, its.shape, name):
            return f"{problem}: each turn is prompt, answer, EOS, and the longest row gives T"
        if not close(mine.long(), its):
            row = int((mine != its).any(dim=1).nonzero()[0])
            return f"{name} of row {row} is {mine[row].tolist()}; expected {its[row].tolist()}"
    return None


class _Scripted(nn.Module):
    """A language model that says what is written in `script` (B, rounds) and notes how it is called."""

    config = SimpleNamespace(max_position_embeddings=64)

    device = torch.device("cpu")

    def __init__(self, script, vocabulary):
        super().__init__()
        self.embed, self.script = nn.Embedding(vocabulary, 8), script
        self.calls, self.problem = 0, None

    def get_input_embeddings(self):
        return self.embed

    def forward(
        self, inputs_embeds=None, attention_mask=None, position_ids=None, cache=None, **how
    ):
        rounds, seen = self.calls, getattr(self, "seen", None)
        self.calls += 1
        if self.problem is None and rounds:
            length = seen["mask"].shape[1] + 1
            said = self.script[:, rounds - 1]
            if inputs_embeds.shape[1] > 1:
                self.problem = "from the second round only the new token is read, (B, 1, D): the cache has the rest"
            elif cache is not seen["cache"]:
                self.problem = f"the cache of round {rounds} is not handed to the next one"
            elif not close(inputs_embeds[:, 0][seen["goes on"]], self.embed(said)[seen["goes on"]]):
                self.problem = "what is read next is not the embedding of the token just said: argmax over the words"
            elif attention_mask is None or attention_mask.shape[1] != length:
                self.problem = "the mask must grow by one column a round, for the token just said"
            elif not (attention_mask[:, -1] == 1).all():
                self.problem = "the new column of the mask is 0: the token just said must be read"
            elif position_ids is None or not torch.equal(
                position_ids, seen["positions"][:, -1:] + 1
            ):
                self.problem = "the position of the new token must be one higher than the last"
        if rounds >= self.script.shape[1]:
            self.problem = (
                self.problem or "you go on although every row has said EOS: update `finished`"
            )
        token = self.script[:, min(rounds, self.script.shape[1] - 1)]
        said = self.script[:, : rounds + 1]
        self.seen = {
            "mask": attention_mask,
            "positions": position_ids,
            "cache": SimpleNamespace(round=rounds),
            "goes on": ~(said == 5).any(dim=1),
        }
        logits = 0.1 * torch.rand(*inputs_embeds.shape[:2], len(self.embed.weight))
        logits[:, -1] = F.one_hot(token, logits.shape[-1]).float()
        logits = logits[:, -how.get("logits_to_keep", 0) :]
        return _Output(logits=logits, cache=self.seen["cache"])


class _Output(dict):
    def __getattr__(self, name):
        return self[name]


class _Blind(nn.Module):
    def forward(self, features):
        return features


@exercise(vlm.generate)
def generate(learner):
    """A scripted language model that notes how it is called, then a small GPT-2 with prompts of several lengths."""
    tokenizer = make_tokenizer()
    eos = tokenizer.eos_token_id
    assert eos == 5
    prompts = ["caption:", "question: is there a star? answer:", "question: what colour? answer:"]
    words = tokenizer(["red blue green", "yes no yes", "2 3 4"], add_special_tokens=False)
    script = torch.tensor([row[:3] for row in words["input_ids"]])
    script = torch.cat([script, torch.full((3, 1), eos)], dim=1)
    script[1, 1] = eos  # the second row ends early
    scripted = _Scripted(script, len(tokenizer))
    model = vlm.VLM(nn.Linear(1, 1), _Blind(), scripted, tokenizer)
    found = learner(model, torch.randn(3, 2, 8), prompts, max_new_tokens=8)
    if scripted.problem:
        return scripted.problem
    if not isinstance(found, list) or len(found) != 3 or not all(isinstance(t, str) for t in found):
        return "return a list of one string a prompt"
    if found != ["red blue green", "yes", "2 3 4"]:
        return f"a model that says 'red blue green', 'yes' and '2 3 4' was made to say {found}"
    sizes = dict(n_positions=64, n_embd=16, n_layer=1, n_head=2, attn_implementation="eager")
    sizes |= dict(bos_token_id=eos, eos_token_id=eos)
    real = random_weights(GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)))
    model = vlm.VLM(nn.Linear(1, 1), _Blind(), real, tokenizer)
    features = torch.randn(3, 2, 16)
    found, right = (each(model, features, prompts, 6) for each in (learner, vlm.generate))
    if found != right:
        return f"a small GPT-2 answers {found}; expected {right}"
    return None


class _Accelerator:
    """What `training_step` uses of accelerate's, as if a second process had as many answer tokens again, noting the calls."""

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

    def reduce(self, value, reduction="sum"):
        return 1.5 * value


class _Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, features, input_ids, attention_mask, labels=None):
        logits = 9 * self.linear(features)  # so large that the gradient is clipped
        return logits if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _three_steps(step, start, batch):
    """(the losses of three steps, the weights after them, the accelerator, whether the model ran under autocast)."""
    model, accelerator, seen = copy.deepcopy(start), _Accelerator(), []
    model.register_forward_hook(lambda *_: seen.append(accelerator.inside))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.3**step)
    with warnings.catch_warnings():  # of a schedule without an optimizer step
        warnings.simplefilter("ignore")
        losses = [step(model, batch, accelerator, optimizer, schedule) for _ in range(3)]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return losses, weights, accelerator, bool(seen) and all(seen)


def _step(*, share=True, clip=1.0, zero=True, schedule=True, average=True):
    """A training step with one thing done in another way."""

    def step(model, batch, accelerator, optimizer, scheduler):
        answers = (batch[3] != -100).sum().float()
        whole = accelerator.reduce(answers, "mean")
        with accelerator.autocast():
            loss = model(*batch) * (answers / whole if share else 1)
        accelerator.backward(loss)
        if clip:
            accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if schedule:
            scheduler.step()
        if zero:
            optimizer.zero_grad()
        return accelerator.reduce(loss.detach(), "mean") if average else loss.detach()

    return step


@exercise(vlm.training_step)
def vlm_training_step(learner):
    """Three steps of a linear model, as one of two processes: the losses, the weights, how the accelerator was used."""
    start, labels = _Toy(), torch.randint(4, (3, 5))
    labels[0, 2:] = -100
    batch = torch.randn(3, 5, 6), torch.zeros(3, 5), torch.ones(3, 5), labels
    right_losses, right, *_ = _three_steps(vlm.training_step, start, batch)
    losses, found, accelerator, under_autocast = _three_steps(learner, start, batch)
    for loss in losses:
        if problem := shape_problem(loss, (), "the loss"):
            return problem
    if losses[0].requires_grad:
        return "return the loss detached: else every loss that is kept holds its whole graph"
    if not accelerator.backwards:
        return "use accelerator.backward(loss): it scales the loss where the precision is fp16"
    if not under_autocast:
        return "the model runs outside `with accelerator.autocast():`, so it never uses the lower precision"
    before = torch.cat([p.detach().flatten() for p in start.parameters()])
    if close(found, before, 1e-7):
        return "the weights did not change: optimizer.step() comes after backward and before zero_grad()"
    mistakes = {
        "the loss does not count answer tokens over all processes: times answers / whole": _step(
            share=False
        ),
        "you return this process's loss; average it: accelerator.reduce(loss.detach(), 'mean')": _step(
            average=False
        ),
        "gradients add up from step to step: optimizer.zero_grad() is missing": _step(zero=False),
        "the gradient is not clipped (or only after the step)": _step(clip=None),
        "the learning rate never changes: scheduler.step() is missing": _step(schedule=False),
    }
    if close(found, right, 1e-5) and close(torch.stack(losses), torch.stack(right_losses)):
        return None
    for said, step in mistakes.items():
        its, weights, *_ = _three_steps(step, start, batch)
        if close(found, weights, 1e-5) and close(torch.stack(losses), torch.stack(its)):
            return said
    return generic(found, right)
