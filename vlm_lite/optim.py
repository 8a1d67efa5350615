"""Muon for the matrices, AdamW for the rest: `torch.optim` has both, and here they are one optimizer.

AdamW scales every number of a gradient by itself. Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)
takes the gradient of a matrix as a whole and makes all its singular values about equal, so that the rare directions
are learnt as fast as the loud ones. A connector between frozen models needs its rare directions (a digit, a shape) as
much as its loud ones (a colour); `vlm-lite study connector_variants` measures both.
"""

import torch

ADAMW_SHARE = 0.25  # of the learning rate


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer of two: `torch.optim.Muon` for the two-dimensional parameters of the first group, AdamW for others.

    groups: as from `train.weight_decay_groups`. lr: that of Muon, whose steps are scaled to AdamW's usual size
    (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2); AdamW has a quarter. Every parameter group has
    its share of the learning rate as `share`, for whoever sets `lr` anew at each step.
    """

    def __init__(self, groups, lr):
        matrices = [p for p in groups[0]["params"] if p.ndim == 2]
        others = [
            p for group in groups for p in group["params"] if not any(p is one for one in matrices)
        ]
        decay = groups[0]["weight_decay"]
        self.muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(
            [{"params": others}], lr=lr * ADAMW_SHARE, weight_decay=0.0, fused=True
        )
        self.muon.param_groups[0]["share"], self.adamw.param_groups[0]["share"] = 1.0, ADAMW_SHARE
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})

    def step(self, closure=None):
        """One step of both. They share this optimizer's groups and state, also after `load_state_dict`."""
        self.muon.param_groups, self.adamw.param_groups = (
            self.param_groups[:1],
            self.param_groups[1:],
        )
        self.muon.state = self.adamw.state = self.state
        self.muon.step()
        self.adamw.step()
