"""Muon and AdamW as one optimizer do what the two of torch.optim do side by side, in fp32."""

import copy

import torch
from torch import nn

from vlm_lite.optim import MuonAdamW, weight_decay_groups


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4), nn.Flatten(), nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 5)
    )


def learn(net, optimizers, steps, first=0):
    for step in range(first, first + steps):
        x = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        net.zero_grad()
        (net(x) - x.flatten(1)[:, :5]).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    return net


def test_it_equals_the_two_optimizers_of_torch_in_fp32_and_only_matrices_are_muon_s(monkeypatch):
    monkeypatch.setattr(
        torch.Tensor, "bfloat16", lambda tensor: tensor.clone()
    )  # torch's own, in fp32
    ours, theirs = model(), model()
    one = MuonAdamW(weight_decay_groups(ours, 0.1), lr=1e-2)
    matrices = [theirs[2].weight, theirs[4].weight]
    others = [p for p in theirs.parameters() if not any(p is matrix for matrix in matrices)]
    two = (
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2.5e-3, weight_decay=0.0, fused=True),
    )
    learn(ours, [one], 5)
    learn(theirs, two, 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert {len(one.state[p]) for p in (ours[2].weight, ours[4].weight)} == {
        1
    }  # a momentum, and nothing else
    assert [group["share"] for group in one.param_groups] == [1.0, 0.25]


def test_its_state_can_be_saved_and_loaded():
    whole = model()
    learn(whole, [MuonAdamW(weight_decay_groups(whole, 0.1), lr=1e-2)], 6)
    parted = model()
    first = MuonAdamW(weight_decay_groups(parted, 0.1), lr=1e-2)
    learn(parted, [first], 3)
    second = MuonAdamW(weight_decay_groups(parted, 0.1), lr=1e-2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(parted, [second], 3, first=3)
    for a, b in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(a, b)
