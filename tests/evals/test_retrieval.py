"""Recall@K against an independent ranking, one query at a time."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lite.evals.retrieval import chance_recall, read_embeddings, recall_at_k
from vlm_lite.evals.zeroshot import zeroshot_scores
from vlm_lite.files import UserError


def brute_force(images, texts, owners, k, strings):
    """Both recalls at k by sorting; a wrong candidate that ties stands first."""

    def norm(v):
        return v / v.norm()

    def hits(queries, gallery, right):
        count = 0
        for q, query in enumerate(queries):
            order = sorted(
                range(len(gallery)),
                key=lambda g: (-float(norm(query) @ norm(gallery[g])), right(q, g)),
            )
            count += any(right(q, g) for g in order[:k])
        return count / len(queries)

    def same(text, image):
        return any(strings[t] == strings[text] and owners[t] == image for t in range(len(texts)))

    return hits(images, texts, lambda i, t: same(t, i)), hits(texts, images, same)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 3), st.booleans(), st.integers(1, 9)
)
def test_recall_equals_a_brute_force_ranking(seed, n, captions, with_strings, chunk_size):
    generator = torch.Generator().manual_seed(seed)
    owners = torch.arange(n).repeat_interleave(captions)
    owners = owners[torch.randperm(len(owners), generator=generator)]
    images = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    texts = torch.randn(len(owners), 4, generator=generator, dtype=torch.float64)
    strings = [f"s{int(x)}" for x in torch.randint(0, 2 * n, (len(owners),), generator=generator)]
    got = recall_at_k(
        images,
        texts,
        owners,
        ks=(1, 2, 5),
        texts=strings if with_strings else None,
        chunk_size=chunk_size,
    )
    for k in (1, 2, 5):
        expected = brute_force(
            images, texts, owners.tolist(), k, strings if with_strings else range(len(owners))
        )
        assert (got["image_to_text"][k], got["text_to_image"][k]) == pytest.approx(expected)


def test_identical_strings_count_as_hits_only_when_the_strings_are_given():
    images, texts = (
        torch.eye(3),
        torch.eye(3)[[1, 0, 2]],
    )  # pictures 0 and 1 have each other's caption
    assert recall_at_k(images, texts, [0, 1, 2], ks=[1])["image_to_text"][1] == pytest.approx(1 / 3)
    same = recall_at_k(images, texts, [0, 1, 2], ks=[1], texts=["a circle", "a circle", "a square"])
    assert same == {"image_to_text": {1: 1.0}, "text_to_image": {1: 1.0}}


def test_a_constant_encoder_scores_nothing():
    got = recall_at_k(torch.ones(20, 4), torch.ones(20, 4), torch.arange(20))
    assert got["image_to_text"] == got["text_to_image"] == {1: 0, 5: 0, 10: 0}


def test_five_captions_an_image_hit_where_any_is_near():
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.7, 0.7]])
    got = recall_at_k(images, texts, [0, 0, 1, 1], ks=(1, 2))
    assert got["image_to_text"] == {
        1: 0.5,
        2: 1.0,
    }  # picture 1's nearest text is picture 0's second
    assert got["text_to_image"] == {
        1: 0.5,
        2: 1.0,
    }  # texts 1 and 3 (a tie) prefer the wrong picture


def test_chance_is_what_a_random_order_gives():
    assert chance_recall(1000, 5) == pytest.approx(0.005)
    assert chance_recall(3, 10) == 1
    assert chance_recall(4, 2, relevant=2) == pytest.approx(1 - 1 / 6)
    torch.manual_seed(0)
    got = recall_at_k(torch.randn(1000, 8), torch.randn(1000, 8), torch.arange(1000))[
        "image_to_text"
    ][10]
    assert got == pytest.approx(chance_recall(1000, 10), abs=0.012)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_embeds": torch.ones(3, 5)}, "joint space"),
        ({"image_embeds": torch.ones(3)}, "shape \\(3,\\)"),
        ({"text_embeds": torch.full((3, 4), float("nan"))}, "text_embeds holds NaN"),
        ({"image_of_text": [0, 1]}, "image_of_text has 2 entries for 3 texts"),
        ({"image_of_text": [0, 1, 1]}, "each of the 3 pictures"),
        ({"image_of_text": [0, 1, 3]}, "from 0 to 3"),
        ({"texts": ["a"]}, "texts has 1 entries"),
        ({"ks": (0,)}, "1 or more"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {
        "image_embeds": torch.eye(3, 4),
        "text_embeds": torch.eye(3, 4),
        "image_of_text": [0, 1, 2],
    }
    with pytest.raises(UserError, match=message):
        recall_at_k(**{**good, **change})


NUMBERS = [
    order + code for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] for order in "<>"
]
NUMBERS = [code for code in NUMBERS if np.dtype(code).kind in "iuf"]
OTHERS = [
    np.array(["a", "b"]),
    np.array([b"a", b"b"]),
    np.array([True, False]),
    np.array([1j, 0]),
    np.array(["2020", "2021"], "M8[Y]"),
    np.array([1, 2], "m8[s]"),
    np.zeros(2, [("a", "f4")]),
    np.zeros(2, "V2"),
]


@pytest.mark.parametrize("code", NUMBERS)
def test_every_numpy_number_is_converted_from_a_file_and_from_an_argument(code, tmp_path):
    images, owners = np.eye(3, dtype=code), np.arange(3).astype(code)
    np.savez(tmp_path / "e.npz", image_embeds=images, text_embeds=images, image_of_text=owners)
    right = {"image_to_text": {1: 1.0}, "text_to_image": {1: 1.0}}
    assert recall_at_k(**read_embeddings(tmp_path / "e.npz"), ks=[1]) == right
    assert recall_at_k(images, images[::-1], owners[::-1], ks=[1]) == right
    assert zeroshot_scores(images, images, owners, ks=[1]) == {"top1": 1.0}


@pytest.mark.parametrize("array", OTHERS, ids=lambda array: str(array.dtype))
@pytest.mark.parametrize("name", ["image_embeds", "text_embeds", "image_of_text"])
def test_what_is_no_number_is_refused_with_the_name_of_its_type(array, name, tmp_path):
    arrays = {"image_embeds": np.eye(2), "text_embeds": np.eye(2), "image_of_text": np.arange(2)}
    arrays[name] = array if name == "image_of_text" else np.stack([array, array])
    np.savez(tmp_path / "e.npz", **arrays)
    message = f"{name} is of {re.escape(str(array.dtype))}; expected"
    with pytest.raises(UserError, match=f"e.npz: {message}"):
        read_embeddings(tmp_path / "e.npz")
    with pytest.raises(UserError, match=message):
        recall_at_k(**arrays)


@pytest.mark.parametrize("odd", [0.5, np.nan, np.inf, 1e30])
def test_a_row_that_is_no_whole_number_is_refused(odd):
    with pytest.raises(UserError, match="image_of_text holds .*; expected whole numbers"):
        recall_at_k(np.eye(2), np.eye(2), np.array([0, odd]))
