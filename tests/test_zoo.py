"""What the zoo's scripts train on, its cards, the cache of features, and that no record is stale."""

import copy

import pytest
import torch

from tests import small
from tools import zoo
from vlm_lite import embed, encoded, studies
from vlm_lite.data import shapes
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.files import UserError, data_path, read_json
from vlm_lite.lessons import shipped
from vlm_lite.models.clip import CLIP
from vlm_lite.models.vlm import load_vlm
from vlm_lite.profiles import PROFILES, Compute


@pytest.fixture(scope="module")
def world():
    return shapes.load_pairs("val", 64, progress=False)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def small_clip(tokenizer, **options):
    return small.clip(len(tokenizer), tokenizer.eos_token_id, image_size=64, width=128, **options)


def test_each_caption_stands_beside_one_almost_right(world, tokenizer):
    _, texts, _ = world
    ids = shipped.almost_right(texts, tokenizer)  # (64, 10, 2, T)
    for five, rows in zip(texts, ids, strict=True):
        right = [tokenizer.decode(row[0], skip_special_tokens=True) for row in rows]
        plain = tokenizer(five)["input_ids"]
        own = [tokenizer.decode(each, skip_special_tokens=True) for each in plain]
        assert right == [text for text in own for _ in range(2)]
    changed = (ids[:, :, 0] != ids[:, :, 1]).sum(dim=-1)
    assert changed.min() == 1 and changed.max() == 2, "one or two words differ"


def test_a_text_beyond_the_context_is_named_before_anything_is_computed(tokenizer):
    model, long = small_clip(tokenizer), "a small red star above a big blue circle " * 12
    with pytest.raises(UserError, match=r"^text 2 .* has 109 tokens, .* 77: 'a small red star"):
        embed.embed_strings(model, ["a star", "a ring", long], tokenizer)
    fits = "star " * 76  # and the EOS
    assert embed.embed_strings(model, [fits], tokenizer).shape == (1, 16)
    for longer in (fits + "star", fits.replace(" ", ", ")):  # one token too many; two to a word
        with pytest.raises(UserError, match="text 0"):
            embed.embed_strings(model, [longer], tokenizer)
    for nothing in ([], "a star"):
        with pytest.raises(UserError, match="list of one string or more"):
            embed.embed_strings(model, nothing, tokenizer)


def test_the_text_corpus_marks_answers_and_nothing_else(tokenizer):
    ids, is_output = zoo.text_corpus(24, seed=1)
    lengths = (ids > 0).sum(1)
    assert (lengths.diff() >= 0).all() and not (is_output & (ids == 0)).any()
    assert is_output[ids == tokenizer.eos_token_id].all(), (
        "the end of an answer is learned, so that answers end"
    )
    assert 0.1 < is_output.float().mean() < 0.6


def test_every_record_is_of_the_code_and_zoo_that_are_here():
    records = {name: studies.load_study(name) for name in studies.STUDIES}
    fewest = {"shapes_vlm": 1}  # ten minutes and more a seed
    assert all(len(each["seeds"]) >= fewest.get(name, 3) for name, each in records.items())
    stale = {name for name in records if records[name]["hash"] != studies.study_hash(name)}
    assert not stale, f"run {[records[name]['command'] for name in sorted(stale)]}"


def test_every_zoo_model_has_a_card_with_command_seed_seconds_hardware_and_scores():
    total = sum(p.stat().st_size for p in data_path("zoo").rglob("*") if p.is_file())
    assert total <= 20e6
    for name in zoo.BUILDERS:
        card = read_json(data_path("zoo", name, "card.json"))
        assert (
            card["command"] == f"vlm-lite zoo build {name}"
            and card["scores"]
            and card["seconds"] > 0
        )
        assert "seed" in card["settings"] and "cores" in card["hardware"]
        assert not [
            p for p in data_path("zoo", name).iterdir() if p.suffix in (".bin", ".pt", ".pkl")
        ]


@pytest.mark.slow
def test_the_shipped_vlm_sees_as_its_card_says():
    vlm = load_vlm("shapes-vlm")
    data = encoded.encode_shapes(vlm.vision, "val", PROFILES["tiny"].val_images)
    result = encoded.probe(vlm, data, limit=500)
    recorded = read_json(data_path("zoo", "shapes-vlm", "card.json"))["scores"][
        "VQA on val, percent"
    ]
    for name in ("vlm", "blind", "shuffled", "oracle"):
        assert abs(100 * result.accuracy[name].value - recorded[name]) < 6, name
    assert result.gain.low > 0.1


@pytest.mark.slow
def test_the_zoos_clip_is_made_and_carded(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "PROFILES", {"tiny": PROFILES["smoke"]})
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    zoo.build_clip(tmp_path / "clip", steps=2, batch_size=8)
    card = read_json(tmp_path / "clip" / "card.json")
    assert card["settings"]["steps"] == 2 and card["scores"]["val"]["image_to_text"]["R@5"] >= 0
    assert CLIP.from_pretrained(tmp_path / "clip").feature_width == 128


@pytest.mark.parametrize(
    "device, precision, named",
    [("cpu", "bf16", False), ("meta", "no", False), ("meta", "fp16", True)],
)
def test_the_cache_of_features_names_the_precision_of_a_gpu_and_keeps_its_name_on_a_cpu(
    device, precision, named, monkeypatch, tokenizer
):
    """No GPU is needed: the tensors of a model on "meta" have no values."""
    keys = []
    monkeypatch.setattr(encoded, "cache_features", lambda encode, images, key: keys.append(key))
    monkeypatch.setattr(encoded, "weights_hash", lambda module: "weights")
    monkeypatch.setattr(encoded, "get_compute", lambda: Compute(device, precision, "a test"))
    vision = small_clip(tokenizer).to(device)
    encoded.patch_features(vision, None)
    plain = {
        "weights": "weights",
        "config": repr(vision.config),
        "layer": -2,
        "mean": embed.CLIP_MEAN,
        "std": embed.CLIP_STD,
    }
    assert keys == [{**plain, "precision": precision} if named else plain]


def test_a_change_of_weights_layer_transform_or_images_is_encoded_anew_and_nothing_else_is(
    tmp_path, monkeypatch, tokenizer
):
    vision, images = (
        small_clip(tokenizer),
        torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8),
    )

    def caches(vision=vision, images=images, **options):
        features = encoded.patch_features(
            vision, images, folder=tmp_path, progress=False, **options
        )
        assert features.shape == (3, 16, 128)
        return len(list(tmp_path.glob("*.npy")))

    assert caches() == caches(copy.deepcopy(vision)) == 1
    moved = copy.deepcopy(vision)
    with torch.no_grad():
        moved.vision_model.embeddings.position_embedding.weight[3, 5] += 1e-3
    other = small_clip(tokenizer, act="quick_gelu")  # the very same weights
    other.load_state_dict(vision.state_dict())
    changed = images.clone()
    changed[2, 1, 0, 0] ^= 1
    assert [caches(moved), caches(other), caches(layer=-1), caches(images=changed)] == [2, 3, 4, 5]
    monkeypatch.setattr(encoded, "CLIP_MEAN", (0.485, 0.456, 0.406))
    assert caches() == 6
