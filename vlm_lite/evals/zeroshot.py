"""Zero-shot classification: the class whose text lies nearest to the image."""

from vlm_lite.evals.retrieval import as_numbers, unit_rows
from vlm_lite.files import UserError


def zeroshot_scores(image_embeds, class_embeds, labels, ks=(1, 5)):
    """{"top1", "top5"}: the part of the images, in [0, 1], whose class is among the k nearest by cosine.

    image_embeds (N, P), class_embeds (C, P), labels (N,) whole numbers below C. A wrong class that ties with the right
    one stands before it, so that equal embeddings earn nothing. With k classes or fewer, top-k is 1 but for ties.
    """
    images = unit_rows("image_embeds", image_embeds)
    classes = unit_rows("class_embeds", class_embeds)
    labels = as_numbers("labels", labels, whole=True)
    if labels.shape != (len(images),) or not 0 <= labels.min() <= labels.max() < len(classes):
        raise UserError(
            f"labels have the shape {tuple(labels.shape)}; expected {len(images)} class numbers, each below {len(classes)}."
        )
    similarity = images @ classes.T  # (N, P) x (P, C) -> (N, C)
    own = similarity.gather(1, labels[:, None])  # (N, 1)
    rank = (similarity >= own).sum(dim=1) - 1  # (N,), how many other classes are at least as near
    return {f"top{k}": (rank < k).double().mean().item() for k in ks}
