"""Recall@K: how often a right partner is among the K nearest, from pictures to captions and back."""

import zlib
from collections import defaultdict
from math import comb
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
import torch.nn.functional as F

from vlm_lite.files import UserError


def recall_at_k(
    image_embeds, text_embeds, image_of_text, ks=(1, 5, 10), texts=None, chunk_size=1024
):
    """Recall@K both ways by cosine similarity, as fractions in [0, 1].

    image_embeds (N, P), text_embeds (M, P), image_of_text (M,): the picture's row of each text; every picture has one
    or more texts. Embeddings need not be normalised. A picture is a hit where any of its texts is among its K nearest.
    texts: the M strings; identical strings then count as one text, since nobody could tell them apart.
    A wrong partner that ties with the best right one stands before it, so that a constant encoder scores 0.
    Returns {"image_to_text": {k: recall}, "text_to_image": {k: recall}}; memory grows with chunk_size * max(N, M).
    """
    image_embeds, text_embeds = (
        _normalized(name, embeds)
        for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds))
    )
    owners = as_numbers("image_of_text", image_of_text, whole=True).tolist()
    N, M = len(image_embeds), len(text_embeds)
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise UserError(
            f"image_embeds are {image_embeds.shape[1]} wide and text_embeds {text_embeds.shape[1]}; "
            "expected embeddings of one joint space."
        )
    for name, values in (("image_of_text", owners), ("texts", owners if texts is None else texts)):
        if len(values) != M:
            raise UserError(f"{name} has {len(values)} entries for {M} texts; expected one each.")
    if not all(0 <= owner < N for owner in owners) or len(set(owners)) != N:
        raise UserError(
            f"image_of_text must name each of the {N} pictures at least once, by its row 0 to {N - 1}; "
            f"it names {len(set(owners))} different ones, from {min(owners)} to {max(owners)}."
        )
    if not ks or min(ks) < 1:
        raise UserError(f"ks is {ks!r}; expected whole numbers of 1 or more.")
    strings = range(M) if texts is None else texts
    texts_of_string, images_of_string, strings_of_image = (
        defaultdict(list),
        defaultdict(set),
        defaultdict(set),
    )
    for text, (string, owner) in enumerate(zip(strings, owners, strict=True)):
        texts_of_string[string].append(text)
        images_of_string[string].add(owner)
        strings_of_image[owner].add(string)
    right_texts = [
        [t for string in strings_of_image[image] for t in texts_of_string[string]]
        for image in range(N)
    ]
    right_images = [images_of_string[string] for string in strings]
    ranks = {
        "image_to_text": _ranks(image_embeds, text_embeds, right_texts, chunk_size),
        "text_to_image": _ranks(text_embeds, image_embeds, right_images, chunk_size),
    }
    return {way: {k: (rank < k).double().mean().item() for k in ks} for way, rank in ranks.items()}


def chance_recall(n, k, relevant=1):
    """The Recall@k of a random order of `n` candidates of which `relevant` are right."""
    if not 1 <= relevant <= n or k < 1:
        raise UserError(
            f"chance_recall(n={n}, k={k}, relevant={relevant}): expected 1 <= relevant <= n and k >= 1."
        )
    return 1 - comb(n - relevant, min(k, n)) / comb(n, min(k, n))


def as_numbers(name, values, *, whole=False):
    """`values` as a tensor of floats or, with `whole`, of int64: a tensor, a list, or an array of any NumPy number in
    either byte order. UserError, with `name`, for other kinds (bool, complex, text, dates, bfloat16 as NumPy stores
    it, ...) and, with `whole`, for a number that is not whole.
    """
    if isinstance(values, torch.Tensor):
        values, kind, numbers = values.detach(), values.dtype, values.dtype != torch.bool
        numbers = numbers and not values.is_complex()
    else:
        values = np.asarray(values)
        kind, numbers = values.dtype, values.dtype.kind in "iuf"
    if not numbers:
        raise UserError(
            f"{name} is of {kind}; expected numbers, whole ones or floats. Convert it, for example "
            "with array.astype('float32')."
        )
    if isinstance(values, np.ndarray):
        with np.errstate(over="ignore"):  # a number beyond float32 is infinite, and then refused
            if not whole:
                return torch.from_numpy(values.astype(np.float32))
            values = torch.from_numpy(values.astype(np.float64 if kind.kind == "f" else np.int64))
    if not whole:
        return values.float()
    if values.is_floating_point():
        odd = ~values.isfinite() | (values != values.round()) | (values.abs() >= 2**53)
        if odd.any():
            raise UserError(
                f"{name} holds {values[odd].flatten()[0].item():g}; expected whole numbers, of 0 or more."
            )
    return values.long()


def read_embeddings(path):
    """The arrays of an NPZ file as the arguments of `recall_at_k`: image_embeds, text_embeds, image_of_text and, where
    the file has them, texts. UserError names the file and the array that is missing, of another kind, or pickled.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist. Check the path, or make the file again.")
    if not is_zipfile(path):
        raise UserError(
            f"{path} is not an NPZ file, or is cut short. Make it again with numpy.savez."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            absent = [
                name
                for name in ("image_embeds", "text_embeds", "image_of_text")
                if name not in file.files
            ]
            if absent:
                raise UserError(
                    f"{path} has no array {', '.join(absent)} (found: {', '.join(file.files) or 'none'}). "
                    "Make it with numpy.savez(path, image_embeds=, text_embeds=, image_of_text=)."
                )
            arrays = {
                name: file[name]
                for name in ("image_embeds", "text_embeds", "image_of_text", "texts")
                if name in file.files
            }
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as NPZ ({error}). It may be cut short or hold objects: make it again "
            "with numpy.savez and arrays of numbers."
        ) from error
    try:
        for name in ("image_embeds", "text_embeds", "image_of_text"):
            arrays[name] = as_numbers(name, arrays[name], whole=name == "image_of_text")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if "texts" in arrays and arrays["texts"].dtype.kind != "U":
        raise UserError(f"{path}: texts is of {arrays['texts'].dtype}; expected strings.")
    for name in ("image_of_text", "texts"):
        if name in arrays:
            if arrays[name].ndim != 1:
                raise UserError(
                    f"{path}: {name} has shape {tuple(arrays[name].shape)}; expected one entry a text, (M,)."
                )
            arrays[name] = arrays[name].tolist()
    return arrays


def _normalized(name, embeds):
    embeds = as_numbers(name, embeds)
    if embeds.ndim != 2 or not len(embeds):
        raise UserError(
            f"{name} has shape {tuple(embeds.shape)}; expected (count, width) with at least one row."
        )
    odd = (~embeds.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if odd:
        raise UserError(
            f"{name} holds NaN or infinite values in {len(odd)} of {len(embeds)} rows, the first of them "
            f"row {odd[0]}; expected numbers. Look at the training loss, or lower the learning rate."
        )
    return F.normalize(embeds, dim=-1)


def _ranks(queries, gallery, right, chunk_size):
    """For each query the number of wrong candidates at least as near as its nearest right one: (Q,)."""
    ranks = []
    for start in range(0, len(queries), chunk_size):
        similarity = queries[start : start + chunk_size] @ gallery.T  # (C, P) x (P, G) -> (C, G)
        pairs = [
            (row, candidate)
            for row, found in enumerate(right[start : start + chunk_size])
            for candidate in found
        ]
        rows, candidates = torch.tensor(pairs, device=similarity.device).T
        is_right = torch.zeros_like(similarity, dtype=torch.bool)
        is_right[rows, candidates] = True
        best = similarity.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)  # (C, 1)
        ranks.append(((similarity >= best) & ~is_right).sum(dim=1))
    return torch.cat(ranks)
