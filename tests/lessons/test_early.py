"""The saved cells of 07b: the quantizer's gradients and restarts, who reads whom in a mixed row, and what is drawn."""

import pytest
import torch
from transformers import ChameleonConfig
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonAttention,
    ChameleonRotaryEmbedding,
    ChameleonVQVAEVectorQuantizer,
)

from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.lessons import early
from vlm_lite.models.text import IGNORE

CODES = torch.arange(16)
SMALL = {"width": 32, "layers": 1, "heads": 2, "inner": 48}


def small_model(seed=0):
    torch.manual_seed(seed)
    return early.EarlyFusion(early.Vocabulary(make_tokenizer()), **SMALL).eval()


def test_the_quantizer_and_its_gradients_are_chameleons():
    torch.manual_seed(0)
    theirs = ChameleonVQVAEVectorQuantizer(ChameleonVQVAEConfig(num_embeddings=12, embed_dim=4))
    mine = early.VectorQuantizer(12, 4, codebook=0.25, commitment=1.0)
    mine.embedding.load_state_dict(theirs.embedding.state_dict())
    z, w = torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4)
    gradients = []
    for part, way in ((mine, (0, 1, 2, 3)), (theirs, (0, 3, 1, 2))):
        x = z.clone().requires_grad_()
        found, loss, codes = part(x.permute(way))
        back = found if part is mine else found.permute(0, 2, 3, 1)
        (loss + (w * back).sum()).backward()
        gradients.append((back, loss, codes.flatten(), x.grad, part.embedding.weight.grad))
    for found, right in zip(*gradients, strict=True):
        torch.testing.assert_close(found, right)


def test_the_gradient_passes_straight_through_the_choice():
    torch.manual_seed(0)
    quantizer = early.VectorQuantizer(5, 3)
    z = torch.randn(4, 3, requires_grad=True)
    found, _, codes = quantizer(z)
    torch.testing.assert_close(found, quantizer.embedding(codes))
    (gradient,) = torch.autograd.grad((found * torch.arange(3.0)).sum(), z)
    torch.testing.assert_close(gradient, torch.arange(3.0).expand(4, 3))


def test_a_restart_moves_dead_codes_to_vectors_seen_and_leaves_the_others():
    torch.manual_seed(0)
    quantizer, z = early.VectorQuantizer(6, 2), 5 + torch.randn(20, 2)
    with torch.no_grad():
        quantizer.embedding.weight[:2] = torch.tensor([[5.0, 5.0], [6.0, 4.0]])
    quantizer(z)
    before = quantizer.embedding.weight.detach().clone()
    assert (quantizer.used > 0).tolist() == [True, True, False, False, False, False]
    quantizer.restart()
    after = quantizer.embedding.weight.detach()
    assert torch.equal(after[:2], before[:2]) and not quantizer.used.any()
    assert all((row == z).all(dim=1).any() for row in after[2:])
    quantizer.eval()(z)
    assert not quantizer.used.any()  # an evaluation is no use


def test_cells_return_to_their_place():
    torch.manual_seed(0)
    model = early.ImageTokenizer().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    changed = images.clone()
    changed[:, :, 16:32, 32:48] = 255 - changed[:, :, 16:32, 32:48]  # cell 4 + 2
    with torch.no_grad():
        model.quantizer.embedding.weight.normal_()
        for layer in (model.encoder[2], model.decoder[2]):
            layer.weight.mul_(20)
    codes, other = model.encode(images), model.encode(changed)
    assert codes.shape == (2, 16)
    moved = codes != other
    assert moved[:, 6].all() and moved.sum() == 2
    drawn, other = model.decode(codes), model.decode(other)
    assert drawn.dtype == torch.uint8 and drawn.shape == images.shape
    touched = (drawn != other).any(dim=0).any(dim=0)
    assert touched[16:32, 32:48].any()
    touched[16:32, 32:48] = False
    assert not touched.any()


def test_the_loss_counts_answers_in_one_kind_of_row_and_the_image_in_the_other():
    words = make_tokenizer()
    vocabulary = early.Vocabulary(words)
    ids, labels, whose = vocabulary.reading(CODES, [("question: a answer:", "red")])
    assert ids[0] == vocabulary.begin and ids[17] == vocabulary.end
    assert [i - vocabulary.first for i in ids[1:17]] == CODES.tolist()
    counted = [i for i in labels if i != IGNORE]
    assert counted == [*words(" red")["input_ids"], words.eos_token_id]
    assert whose == [0] * 18 + [1] * (len(ids) - 18)
    ids, labels, _ = vocabulary.drawing(CODES, "a red star.")
    assert [i for i in labels if i != IGNORE] == ids[-17:] and ids[-1] == vocabulary.end
    assert len(vocabulary.reading(None, [("a", "red")])[0]) < 5
    assert vocabulary.size == len(words) + 514


def test_turns_read_the_image_and_not_each_other():
    vocabulary, model = early.Vocabulary(make_tokenizer()), small_model()
    turns = [("question: is there a star? answer:", "yes"), ("question: is there a cross? answer:", "no")]  # fmt: skip
    rows = [vocabulary.reading(CODES, turns), vocabulary.drawing(CODES, "a red star.")]
    ids, mask, labels = early.pad_rows(rows)
    assert ids.shape == labels.shape == mask.shape[:2]

    def logits(ids):
        with torch.no_grad():
            return model.text_model(model.embed(ids), mask)[0]

    first = torch.tensor(rows[0][2]) == 1
    changed = ids.clone()
    changed[0, : len(first)][first] = 7
    same = torch.isclose(logits(ids), logits(changed), atol=1e-5).all(dim=2)[0]
    last = len(rows[0][0])
    assert same[18 + int(first.sum()) : last].all() and not same[18]
    changed = ids.clone()
    changed[0, 3] += 1  # an image code
    same = torch.isclose(logits(ids), logits(changed), atol=1e-5).all(dim=2)[0]
    assert same[:3].all() and not same[3:last].any()


def test_a_drawing_is_16_codes_the_same_with_the_same_seed():
    model, captions = small_model(), ["a red star.", "a small blue circle in the top left."]
    codes = model.draw(captions)
    assert codes.shape == (2, 16) and codes.min() >= 0 and codes.max() < 512
    assert torch.equal(codes, model.draw(captions))
    assert not torch.equal(codes, model.draw(captions, seed=1))


def test_padding_on_the_left_changes_nothing():
    model, rows = small_model(), [[5, 6, 7], [8, 9, 10, 11, 12]]

    def last(rows):
        ids, mask = model.left_padded(rows)
        with torch.no_grad():
            return model.text_model(model.embed(ids), mask)[0][:, -1]

    torch.testing.assert_close(last(rows)[:1], last(rows[:1]), atol=1e-5, rtol=1e-4)


def test_an_answer_is_words_and_depends_on_the_codes():
    model, prompts = small_model(), ["question: is there a star? answer:"] * 2
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    with torch.no_grad():  # only words can win
        model.text_model.lm_head.weight[model.vocabulary.first :] = 0
        model.text_model.lm_head.weight[:4] = 0
    alone = model.generate(None, prompts, 6)
    assert alone[0] == alone[1] and alone[0]
    said = model.generate(torch.stack([CODES, CODES + 100]).float(), prompts, 6)
    assert len(said) == 2 and said[0] != said[1]


def test_attention_with_query_key_norm_is_chameleons():
    torch.manual_seed(0)
    config = ChameleonConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, vocabulary_map={"<image>": 4}
    )
    config._attn_implementation = "eager"
    theirs = ChameleonAttention(config, 0)
    for weights in theirs.parameters():
        torch.nn.init.normal_(weights)
    mine = early.llama(40, width=32, layers=1, heads=4, inner=48).layers[0].self_attn
    state = theirs.state_dict()
    for p in "qk":
        state[f"{p}_proj.0.weight"] = state.pop(f"{p}_proj.weight")
        for name in ("weight", "bias"):
            state[f"{p}_proj.1.{name}"] = state.pop(f"{p}_norm.{name}")
    mine.load_state_dict(state)
    x, positions = torch.randn(1, 6, 32), torch.arange(6)[None]
    cos, sin = ChameleonRotaryEmbedding(config)(x, positions)
    with torch.no_grad():
        right = theirs(x, position_embeddings=(cos, sin))[0]
        found = mine(x, (cos[:, None], sin[:, None]))[0]
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_only_with_the_norm_do_larger_weights_leave_the_bound_as_it_is(qk_norm):
    torch.manual_seed(0)
    model = early.EarlyFusion(early.Vocabulary(make_tokenizer()), qk_norm=qk_norm, **SMALL)
    before = early.logit_bound(model)["logit bound"]
    projection = model.text_model.layers[0].self_attn.q_proj
    (projection[0] if qk_norm else projection).weight.data *= 100
    after = early.logit_bound(model)["logit bound"]
    assert (before <= after <= 4.01) if qk_norm else after > 50 * before


@pytest.mark.slow
def test_one_seed_gives_one_model_and_a_batch_is_learnt(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    images = torch.full((12, 3, 16, 16), 60, dtype=torch.uint8)
    images[:6, 0], images[6:, 1, :8] = 200, 220
    recipe = {"steps": 100, "lr": 1e-2}
    one, two = (early.train_tokenizer(images, **recipe) for _ in range(2))
    torch.manual_seed(0)
    untrained = early.ImageTokenizer()
    before, after = (model(images).item() for model in (untrained, one))
    assert after < 0.5 * before
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_codes_that_are_alike_start_alike_and_words_stay_as_they_are():
    model, codebook = small_model(), torch.randn(512, 8)
    codebook[1] = codebook[0]
    before = [w.clone() for w in model.parameters()]
    weights, first = model.text_model.embed_tokens.weight, model.vocabulary.first
    words = weights[:first].clone()
    early.start_from(codebook, model)
    assert torch.equal(weights[:first], words)
    torch.testing.assert_close(weights[first], weights[first + 1])
    assert not torch.allclose(weights[first], weights[first + 2])
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) == 2


def test_a_row_counts_once_whatever_it_has_to_write():
    model, vocabulary = small_model(), early.Vocabulary(make_tokenizer())
    rows = [vocabulary.reading(CODES, [("question: a answer:", "red")])]
    rows.append(vocabulary.drawing(CODES, "a red star."))
    alone = [model(*early.pad_rows([row])) for row in rows]
    torch.testing.assert_close(model(*early.pad_rows(rows)), sum(alone) / 2)
