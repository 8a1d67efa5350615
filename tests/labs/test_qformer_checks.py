"""Notebook 03's checks: right answers in another style pass, and each known mistake is called by its name.

An attempt is the lesson's own code with an edit (what stands there, what instead), or a function or class.
"""

import pytest
import torch
from einops import rearrange

from tests import small
from vlm_lite.labs import check
from vlm_lite.labs import qformer as known
from vlm_lite.lessons import qformer

MERGE = 'rearrange(mixed, "b heads n h -> b n (heads h)")'
SELF = "self.self_norm(queries + self.self_attention(queries, queries))"
CROSS = "self.cross_norm(queries + self.cross_attention(queries, patches))"
MLP = "self.mlp_norm(queries + self.mlp_out(nn.functional.gelu(self.mlp_in(queries))))"
START, LABELS = (
    "self.input_norm(self.query_tokens)",
    "pad_sequence([torch.tensor(row) for row in labels]",
)
EMBEDDED = "model.language_model.get_input_embeddings()(token[:, None])"
MEAN, CLIPPED = (
    'accelerator.reduce(loss.detach(), "mean")',
    "accelerator.clip_grad_norm_(model.parameters(), 1.0)",
)
RIGHT = {
    check.CrossAttention: [("q @ k.transpose(-2, -1)", "torch.einsum('bhqd, bhnd -> bhqn', q, k)")],
    check.QFormerLayer: [
        (CROSS, "self.cross_norm(self.cross_attention(queries, patches) + queries)")
    ],
    check.QFormer: [("in self.layers:", "in list(self.layers):")],
    check.build_batch: [known._batch],
    check.generate: [("argmax(dim=-1)", "topk(1).indices[:, 0]")],
    check.vlm_training_step: [
        ("optimizer.zero_grad()", "", "    with acc", "    optimizer.zero_grad()\n    with acc")
    ],
}
WRONG = {
    check.CrossAttention: {
        "left out the division": (" / q.shape[-1] ** 0.5", ""),
        "divide by its root": ("** 0.5", ""),
        "*whole* width": ("q.shape[-1]", "x.shape[-1]"),
        "over the queries": ("dim=-1", "dim=-2"),
        "split the heads": ("n (heads h) -> b heads", "n (h heads) -> b heads"),
        "merged as": ("-> b n (heads h)", "-> b n (h heads)"),
        "not side by side": (MERGE, "mixed.reshape(x.shape)"),
        "causal": ("(q @", "(torch.full((x.shape[1],) * 2, -torch.inf).triu(1) + q @"),
        "keys come from x": ("self.key(source)", "self.key(x)"),
        "values come from x": ("self.value(source)", "self.value(x)"),
        "average the keys": ("weights @ v", "weights @ k"),
        "`output` is missing": ("return self.output(", "return ("),
        "still None": ("self.weights = weights.detach()", ""),
        "detach": ("weights.detach()", "weights"),
        "does not hold": ("weights.detach()", "weights.mT.detach()"),
        "exchanged": ("projected =", "x, source = source, x\n        projected ="),
        "x alone": ("(source)", "(x)"),
        "as long as x": (
            "projected =",
            "source = torch.cat([source] * 2, dim=1)[:, : x.shape[1]]\n        projected =",
        ),
        "key.bias is missing": ("self.key", "self.keys"),
    },
    check.QFormerLayer: {
        "post-norm": (
            *(SELF, "queries + self.self_attention(*2 * [self.self_norm(queries)])"),
            *(CROSS, "queries + self.cross_attention(self.cross_norm(queries), patches)"),
            *(
                "self.mlp_norm(queries +",
                "(queries +",
                "mlp_in(queries)",
                "mlp_in(self.mlp_norm(queries))",
            ),
        ),
        "residuals are missing": ("queries + self.", "self."),
        "norms are missing": (
            "self.self_norm(",
            "(",
            "self.cross_norm(",
            "(",
            "self.mlp_norm(",
            "(",
        ),
        "comes first": (
            *(f"queries = {SELF}\n        if", "if"),
            *(CROSS, f"{CROSS}\n        queries = {SELF}"),
        ),
        "has the patches as its source": ("(queries, queries)", "(queries, patches)"),
        "never comes in": (
            "cross_attention(queries, patches)",
            "cross_attention(queries, queries)",
        ),
        "self-attention is missing": (SELF, "queries"),
        "cross-attention is missing": (CROSS, "queries"),
        "MLP is missing": (MLP, "queries"),
        "no activation": ("nn.functional.gelu(", "("),
        "ReLU": ("functional.gelu", "functional.relu"),
        "cross=False": (SELF, f"{SELF}\n        if not self.cross:\n            return queries"),
    },
    check.QFormer: {
        "`input_norm` is missing": (START, "self.query_tokens"),
        "not after them": (
            START,
            "self.query_tokens",
            "return queries",
            "return self.input_norm(queries)",
        ),
        "only one of the layers": ("in self.layers:", "in self.layers[:1]:"),
        "only one of the layers runs": ("in self.layers:", "in self.layers[1:2]:"),
        "wrong order": ("in self.layers:", "in self.layers[::-1]:"),
        "layers are missing": ("in self.layers:", "in self.layers[:0]:"),
        "its own patches": (
            "layer(queries, patches)",
            "layer(queries, patches[:1].expand_as(patches))",
        ),
        "batch axis": ("return queries", "return queries[0]"),
    },
    check.build_batch: {
        "mask by length": ("return ids, mask", "return ids, (ids != pad).long()"),
        "lost the EOS": (
            f"{LABELS}, True, -100)",
            f"{LABELS}, True, -100).masked_fill(ids == pad, -100)",
        ),
        "1 everywhere": ("return ids, mask", "return ids, torch.ones_like(ids)"),
        "trained to say it": ("True, -100)", "True, pad)"),
        "label 0": ("True, -100)", "True, 0)"),
        "on the left": (
            *("True, pad)", "True, pad, 'left')", "in ids], True)", "in ids], True, 0, 'left')"),
            *("True, -100)", "True, -100, 'left')"),
        ),
        "prompts are in the loss": ("[-100] * len(prompt)", "prompt"),
        "shifted": ("    mask =", "    labels = [row[1:] + [-100] for row in labels]\n    mask ="),
        "no EOS ends": ("answer + [eos]", "answer"),
        "EOS": ("len(prompt) + answer + [eos]", "len(prompt) + answer + [-100]"),
        "first turn": ("in turns:", "in turns[:1]:"),
        "three tensors": (f", {LABELS}, True, -100)", ""),
        "has shape": ("    eos, pad", "    rows = rows[:2]\n    eos, pad"),
        "of row": ("    eos, pad", "    rows = rows[::-1]\n    eos, pad"),
    },
    check.generate: {
        "not handed": ("cache: output[cache],", ""),
        "only the new token": (
            EMBEDDED,
            f"torch.cat([inputs['inputs_embeds'], {EMBEDDED}], dim=1)",
        ),
        "grow by one column": (
            'F.pad(inputs["attention_mask"], (0, 1), value=1)',
            'inputs["attention_mask"]',
        ),
        "must be read": ("(0, 1), value=1", "(0, 1), value=0"),
        "one higher": ("[:, -1:] + 1", "[:, -1:]"),
        "go on although": ("if finished.all():", "if False:"),
        "not the embedding": ("argmax(", "argmin("),
        "not the embedding of": ("logits[:, -1]", "logits[:, 0]", ", logits_to_keep=1", ""),
        "list of one string": ("answers, len(ids))", "answers, len(ids))[0]"),
    },
    check.vlm_training_step: {
        "answers / whole": (" * answers / whole", ""),
        "average it": (MEAN, "loss.detach()"),
        "add up": ("optimizer.zero_grad()", ""),
        "not clipped": (CLIPPED, ""),
        "scheduler.step() is missing": ("scheduler.step()", ""),
        "outside": ("with accelerator.autocast():", "if True:"),
        "accelerator.backward": ("accelerator.backward(loss)", "loss.backward()"),
        "detached": (MEAN, "loss"),
        "did not change": ("optimizer.step()", "optimizer.zero_grad()\n    optimizer.step()"),
    },
}


def test_rearranged_attention_of_the_checks_is_the_lessons():
    reference, x = qformer.MultiHeadAttention(12, 3, 8), torch.randn(2, 4, 12)
    source = torch.randn(2, 6, 8)
    out, weights = known._attended(reference, x, source)
    torch.testing.assert_close(out, reference(x, source))
    torch.testing.assert_close(weights, reference.weights)
    assert rearrange(weights, "b h q n -> (b h q) n").shape == (24, 6)


def test_equality_with_blip2_is_proved_of_a_learners_model_and_a_wrong_one_is_refused():
    check.same_as_blip2(qformer.QFormer)
    for mistake in ("`input_norm` is missing", "not after them"):
        with pytest.raises(AssertionError):
            check.same_as_blip2(small.edited(qformer.QFormer, *WRONG[check.QFormer][mistake]))
