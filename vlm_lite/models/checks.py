"""What the contrastive losses of `models.clip` ask of their inputs."""

import math
import warnings


def check_pairs(image_embeds, text_embeds, logit_scale, *, sigmoid=False):
    """ValueError unless both are finite and of one shape (B, P), B at least 1, and logit_scale is a logarithm.

    CLIP keeps e^logit_scale to 100 at most. SigLIP (`sigmoid`) does not, and its released weights have learnt 112: from
    1000 on it is refused. A batch of one warns, but for SigLIP, which asks of a single pair too whether it is right.
    A GPU is waited for once.
    """
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape or not len(image_embeds):
        raise ValueError(
            f"image_embeds has shape {tuple(image_embeds.shape)} and text_embeds "
            f"{tuple(text_embeds.shape)}; expected the same (B, P), one caption a picture."
        )
    if len(image_embeds) == 1 and not sigmoid:
        warnings.warn(
            "in a batch of one, no pair has another to be told from: InfoNCE is 0 whatever the model does, "
            "and only hard negatives count. Use a larger batch.",
            stacklevel=3,
        )
    largest = 1000 if sigmoid else 100
    # (log 100 in fp16 is a little more than log 100.)
    if (
        (logit_scale <= math.log(largest) + 1e-3).all()
        & image_embeds.isfinite().all()
        & text_embeds.isfinite().all()
    ):
        return
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if len(rows := (~embeds.isfinite().all(dim=1)).nonzero()):
            raise ValueError(
                f"{name} row {int(rows[0])} holds NaN or infinity. Check the picture or text of that row, "
                "then lower the learning rate, clip gradients, or leave fp16 for bf16 or fp32."
            )
    raise ValueError(
        f"logit_scale is {float(logit_scale):.4g}: expected the logarithm of the scale, at most log "
        f"{largest} = {math.log(largest):.3f}. Give its log; while it learns, clamp it after each step."
    )
