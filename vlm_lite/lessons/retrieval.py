"""Recall@K and zero-shot accuracy with their ties, and hard negatives, under which the shipped CLIP is asked.

Generated from notebooks/01c_retrieval_scores.py by `make notebooks`: edit the notebook.
"""

from math import comb

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from vlm_lite.files import UserError

ARRAYS = ("image_embeds", "text_embeds", "image_of_text")


def ranks_of(queries, gallery, right, chunk_size):
    """For each query the number of wrong candidates at least as near as its nearest right one: (Q,).

    right: a sparse array (Q, G), which candidates are right for each.
    """
    ranks = []
    for at in torch.arange(len(queries)).split(chunk_size):
        similarity = queries[at] @ gallery.T  # (C, P) x (P, G) -> (C, G)
        is_right = torch.from_numpy(right[at.numpy()].toarray())
        best = similarity.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)  # (C, 1)
        ranks.append(((similarity >= best) & ~is_right).sum(dim=1))
    return torch.cat(ranks)


def recall_at_k(
    image_embeds, text_embeds, image_of_text, ks=(1, 5, 10), texts=None, chunk_size=1024
):
    """Recall@K both ways by cosine similarity, as fractions in [0, 1].

    image_embeds (N, P), text_embeds (M, P), image_of_text (M,): the image's row of each text; every image has one
    or more texts. Embeddings need not be normalised. An image is a hit where any of its texts is among its K nearest.
    texts: the M strings; identical strings then count as one text, since nobody could tell them apart.
    A wrong partner that ties with the best right one stands before it, so that a constant encoder scores 0.
    Returns {"image_to_text": {k: recall}, "text_to_image": {k: recall}}; memory grows with chunk_size * max(N, M).
    """
    image_embeds = unit_rows("image_embeds", image_embeds)
    text_embeds = unit_rows("text_embeds", text_embeds)
    owners = as_numbers("image_of_text", image_of_text, whole=True).numpy()
    N, M = len(image_embeds), len(text_embeds)
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise UserError(
            f"image_embeds are {image_embeds.shape[1]} wide and text_embeds {text_embeds.shape[1]}; "
            "expected embeddings of one joint space."
        )
    strings = list(range(M) if texts is None else texts)
    shapes = owners.shape, np.shape(strings)
    if shapes != ((M,), (M,)) or set(owners.tolist()) != set(range(N)):
        first, last = min(owners.flat, default=None), max(owners.flat, default=None)
        raise UserError(
            f"image_of_text has shape {shapes[0]}, from {first} to {last}, and texts {shapes[1]}; expected ({M},) each, one a "
            f"text, and each of the {N} images named by its row 0 to {N - 1}."
        )
    if not ks or min(ks) < 1:
        raise UserError(f"ks is {ks!r}; expected whole numbers of 1 or more.")
    number = {string: k for k, string in enumerate(dict.fromkeys(strings))}
    said = np.array([number[string] for string in strings])  # (M,), equal for equal strings
    has = csr_array((np.ones(M, bool), (owners, said)))  # which image has which string
    ranks = {
        "image_to_text": ranks_of(image_embeds, text_embeds, has[:, said], chunk_size),
        "text_to_image": ranks_of(text_embeds, image_embeds, has.T.tocsr()[said], chunk_size),
    }
    return {way: {k: (rank < k).double().mean().item() for k in ks} for way, rank in ranks.items()}


def chance_recall(n, k, relevant=1):
    """The Recall@k of a random order of `n` candidates of which `relevant` are right."""
    return 1 - comb(n - relevant, min(k, n)) / comb(n, min(k, n))


def as_numbers(name, values, *, whole=False):
    """`values` as a tensor of floats or, with `whole`, of int64: a tensor, a list, or an array of any NumPy number in
    either byte order. UserError, with `name`, for other kinds (bool, complex, text, dates, bfloat16 as NumPy stores
    it, ...) and, with `whole`, for a number that is not whole.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise UserError(
            f"{name} is of {values.dtype}; expected numbers, whole ones or floats. Convert it, for example "
            "with array.astype('float32')."
        )
    if not whole:
        with np.errstate(over="ignore"):  # beyond float32 it is infinite, and then refused
            return torch.from_numpy(values.astype(np.float32))
    odd = values[~((values == np.round(values)) & (abs(values) < 2.0**53))]
    if odd.size:
        raise UserError(f"{name} holds {odd[0]}; expected whole numbers, of 0 or more.")
    return torch.from_numpy(values.astype(np.int64))


def unit_rows(name, embeds):
    """Embeddings (count, width), each brought to unit length. UserError, with `name`, for other shapes, NaN, infinity."""
    embeds = as_numbers(name, embeds)
    if embeds.ndim != 2 or not embeds.numel():
        raise UserError(
            f"{name} has shape {tuple(embeds.shape)}; expected (count, width), one or more of each."
        )
    finite = embeds.isfinite().all(dim=1)
    if not finite.all():
        raise UserError(
            f"{name} has NaN, or values beyond float32, in rows {(~finite).nonzero().flatten().tolist()[:5]}. Look at the "
            "training loss, or lower the learning rate."
        )
    return F.normalize(embeds, dim=-1)


def read_embeddings(path):
    """The arrays of an NPZ file as the arguments of `recall_at_k`: image_embeds, text_embeds, image_of_text and, where
    the file has them, texts. UserError names the file, and an array that is missing or pickled.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in (*ARRAYS, "texts") if name in file.files}
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds
        raise UserError(
            f"{path} cannot be read as NPZ ({error}). It may be cut short or hold objects: make it again "
            "with numpy.savez and arrays of numbers."
        ) from error
    absent = [name for name in ARRAYS if name not in found]
    if absent:
        raise UserError(
            f"{path} has no array {absent[0]} (found: {', '.join(found) or 'none'}). Make it with "
            "numpy.savez(path, image_embeds=, text_embeds=, image_of_text=)."
        )
    return {name: array.tolist() if name == "texts" else array for name, array in found.items()}


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
