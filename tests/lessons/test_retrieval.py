"""Recall@K against an independent ranking, one query at a time."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evals.official import save_embeddings
from tests.small import refused
from vlm_lite.lessons.retrieval import chance_recall, read_embeddings, recall_at_k, zeroshot_scores


def brute_force(images, texts, owners, k, strings):
    """Both recalls at k by sorting; a wrong candidate that ties stands first."""
    near = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1).tolist()
    right = [
        [any(strings[t] == s and owners[t] == i for t in range(len(texts))) for s in strings]
        for i in range(len(images))
    ]

    def hits(near, right):
        ranked = (
            sorted(zip(n, r, strict=True), key=lambda pair: (-pair[0], pair[1]))
            for n, r in zip(near, right, strict=True)
        )
        return np.mean([any(is_right for _, is_right in row[:k]) for row in ranked])

    return hits(near, right), hits(list(zip(*near, strict=True)), list(zip(*right, strict=True)))


@settings(max_examples=30)
@given(
    st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 3), st.booleans(), st.integers(1, 9)
)
def test_recall_equals_a_brute_force_ranking(seed, n, captions, with_strings, chunk_size):
    draw = torch.Generator().manual_seed(seed)
    owners = torch.arange(n).repeat_interleave(captions)
    owners = owners[torch.randperm(len(owners), generator=draw)]
    images, texts = (
        torch.randn(count, 4, generator=draw, dtype=torch.float64) for count in (n, len(owners))
    )
    strings = torch.randint(0, 2 * n, (len(owners),), generator=draw).tolist()
    strings = list(map(str, strings)) if with_strings else None
    got = recall_at_k(images, texts, owners, (1, 2, 5), texts=strings, chunk_size=chunk_size)
    for k in (1, 2, 5):
        expected = brute_force(images, texts, owners.tolist(), k, strings or range(len(owners)))
        assert (got["image_to_text"][k], got["text_to_image"][k]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "images, texts, owners, strings, to_text, to_image",
    [
        (
            torch.ones(20, 4),
            torch.ones(20, 4),
            range(20),
            None,
            (0, 0),
            (0, 0),
        ),  # a constant encoder
        # image 1's nearest text is image 0's second; texts 1 and 3 (a tie) prefer the wrong image
        (
            torch.eye(2),
            [[1, 0], [0, 1], [0.6, 0.8], [0.7, 0.7]],
            [0, 0, 1, 1],
            None,
            (0.5, 1),
            (0.5, 1),
        ),
    ],
)
def test_recall_by_hand(images, texts, owners, strings, to_text, to_image):
    got = recall_at_k(images, texts, list(owners), ks=(1, 3), texts=strings)
    assert [*got["image_to_text"].values()] == pytest.approx(to_text)
    assert [*got["text_to_image"].values()] == pytest.approx(to_image)


def test_chance_is_what_a_random_order_gives():
    assert chance_recall(1000, 5) == pytest.approx(0.005) and chance_recall(3, 10) == 1
    assert chance_recall(4, 2, relevant=2) == pytest.approx(1 - 1 / 6)
    torch.manual_seed(0)
    got = recall_at_k(torch.randn(1000, 8), torch.randn(1000, 8), torch.arange(1000), ks=[10])
    assert got["image_to_text"][10] == pytest.approx(chance_recall(1000, 10), abs=0.012)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_embeds": np.ones((12, 5))}, "image_embeds are 5 wide and text_embeds 12"),
        *(
            ({"image_embeds": np.ones(shape)}, r"image_embeds has shape \(.*\); expected")
            for shape in ((), 12, (0, 12), (12, 0), (1, 12, 12))
        ),
        ({"text_embeds": np.diag([np.nan, *range(11)])}, r"text_embeds .* rows \[0\]"),
        ({"text_embeds": None}, "no array text_embeds"),
        ({"image_of_text": np.arange(11)}, r"image_of_text has shape \(11,\).*expected \(12,\)"),
        ({"image_of_text": np.arange(1, 13)}, "from 1 to 12"),
        ({"image_of_text": np.zeros((12, 1), int)}, r"image_of_text has shape \(12, 1\)"),
        *(
            ({"image_of_text": np.full(12, n)}, "image_of_text holds")
            for n in (0.5, np.nan, np.inf, 1e30)
        ),
        ({"texts": np.array(["a"])}, r"texts \(1,\);"),
        ({"texts": np.array([["a"]] * 12)}, r"texts \(12, 1\);"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    with refused(message):
        recall_at_k(**read_embeddings(save_embeddings(tmp_path / "e.npz", **change)))


KINDS = {o + c for c in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] for o in "<>"}


@pytest.mark.parametrize("code", sorted(code for code in KINDS if np.dtype(code).kind in "iuf"))
def test_every_numpy_number_is_converted_from_a_file_and_from_an_argument(code, tmp_path):
    images, owners = np.eye(12, dtype=code), np.arange(12).astype(code)
    arrays = {"image_embeds": images, "text_embeds": images, "image_of_text": owners}
    right = {"image_to_text": {1: 1.0}, "text_to_image": {1: 1.0}}
    file = save_embeddings(tmp_path / "e.npz", **arrays)
    assert recall_at_k(**read_embeddings(file), ks=[1]) == right
    assert recall_at_k(images, images[::-1], owners[::-1], ks=[1]) == right
    assert zeroshot_scores(images, images, owners, ks=[1]) == {"top1": 1.0}


@pytest.mark.parametrize("code", ["U1", "S1", "?", "c8", "M8[Y]", "m8[s]", [("a", "f4")], "V2"])
@pytest.mark.parametrize("name", ["image_embeds", "text_embeds", "image_of_text"])
def test_what_is_no_number_is_refused_with_the_name_of_its_type(code, name, tmp_path):
    array = np.zeros((2, 2)[: 1 + (name != "image_of_text")], code)
    message = f"{name} is of {re.escape(str(array.dtype))}"
    arrays = {"image_embeds": np.eye(2), "text_embeds": np.eye(2), "image_of_text": np.arange(2)}
    file = save_embeddings(tmp_path / "e.npz", **{**arrays, name: array})
    with refused(message):
        recall_at_k(**read_embeddings(file))
    with refused(message):
        recall_at_k(**{**arrays, name: array})
