"""Muon for the matrices, AdamW for the rest, as one optimizer.

AdamW scales every number of a gradient by itself. Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)
takes the gradient of a matrix as a whole and makes all its singular values about equal, so that the rare directions
are learnt as fast as the loud ones. A connector between frozen models needs its rare directions (a digit, a shape) as
much as its loud ones (a colour).

`torch.optim.Muon` orthogonalises in bfloat16 on every device. A CPU that only emulates bf16 then multiplies fifty times
slower than in fp32, so here it is fp32 everywhere; with that one change the two are equal (`tests/test_optim.py`).
"""

import torch

from vlm_lite.checkpoint import trainable_parameters

ADAMW_SHARE = 0.25  # of the learning rate
MOMENTUM = 0.95
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # the quintic's coefficients, from Jordan's post


def orthogonalize(matrix, steps=5):
    """The matrix (M, N) with its singular values brought near 1, by Newton-Schulz iterations in fp32."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.float().T if matrix.size(0) > matrix.size(1) else matrix.float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.size(0) > matrix.size(1) else x


def weight_decay_groups(model, weight_decay):
    """Two AdamW parameter groups of the trainable parameters: matrices with decay; the rest without.

    The rest is biases, norms, every other one-dimensional parameter, embeddings and learnt tokens such as queries.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed, plain = [], []
    for name, parameter in trainable_parameters(model).items():
        is_matrix = (
            parameter.ndim >= 2 and name.endswith("weight") and id(parameter) not in embeddings
        )
        (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(model, lr):
    """AdamW for what is trainable, without weight decay, as LLaVA is trained."""
    return torch.optim.AdamW(trainable_parameters(model).values(), lr, weight_decay=0.0)


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer of two for what is trainable in a module: Muon for the weights of linear layers, AdamW for the rest.

    model: a module, or groups as from `weight_decay_groups`. lr: that of Muon, whose steps are scaled to AdamW's usual size
    (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2); AdamW has a quarter. Every parameter group has
    its share of the learning rate as `share`, for whoever sets `lr` anew at each step.
    """

    def __init__(self, model, lr, weight_decay=0.01):
        groups = model if isinstance(model, list) else weight_decay_groups(model, weight_decay)
        matrices = [p for p in groups[0]["params"] if p.ndim == 2]
        others = [
            p
            for group in groups
            for p in group["params"]
            if not any(p is matrix for matrix in matrices)
        ]
        self.adamw = torch.optim.AdamW(
            [{"params": others}], lr=lr * ADAMW_SHARE, weight_decay=0.0, fused=True
        )
        self.adamw.param_groups[0]["share"] = ADAMW_SHARE
        muon = {
            "params": matrices,
            "lr": lr,
            "weight_decay": groups[0]["weight_decay"],
            "share": 1.0,
        }
        super().__init__([muon, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both. AdamW shares this optimizer's groups and state, also after `load_state_dict`."""
        muon, *self.adamw.param_groups = self.param_groups
        self.adamw.state = self.state
        for matrix in muon["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            momentum = state.setdefault("momentum_buffer", torch.zeros_like(matrix.grad))
            momentum.lerp_(matrix.grad, 1 - MOMENTUM)
            update = orthogonalize(matrix.grad.lerp(momentum, MOMENTUM))  # Nesterov's
            matrix.mul_(1 - muon["lr"] * muon["weight_decay"])
            matrix.add_(update, alpha=-0.2 * max(matrix.shape) ** 0.5 * muon["lr"])
        self.adamw.step()
