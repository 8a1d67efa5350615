"""The checks draw fresh random inputs. Here the draws are the same in every run, so that a failure can be repeated."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)
