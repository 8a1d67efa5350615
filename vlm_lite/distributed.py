"""Several processes, one batch: what a contrastive loss needs of the others (start them with torchrun)."""

import torch


def gather(x):
    """x (B, P) of this process -> (W B, P), those of all W processes in the order of their ranks; B is the same in all.

    Gradients flow back to every process. Every process then has the whole loss, and the mean of their gradients, as
    DistributedDataParallel takes it, is that of one process with the whole batch. With one process it is x itself.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))
