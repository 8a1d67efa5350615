"""Which families of language models load: those that the VLM reads, trains and asks exactly as transformers does.

A tiny random model of each family is made; where it has windows, they are shorter than the text.
"""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, PreTrainedTokenizerFast

from tests.small import refused
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.text import FAMILIES, context_length, load_language_model

SIZES = {
    **dict(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    **dict(num_key_value_heads=2, intermediate_size=48),
    **dict(pad_token_id=0, bos_token_id=1, eos_token_id=2),
}
HEADS, WINDOW = dict(head_dim=8), dict(sliding_window=4)
MIXED = dict(**WINDOW, layer_types=["sliding_attention", "full_attention"])
GPT = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
OF = {  # what a family's tiny model has beside SIZES
    "bloom": dict(n_layer=2, n_head=4),
    "codegen": dict(**GPT, rotary_dim=8),
    "cohere": dict(logit_scale=0.25),
    "cohere2": dict(logit_scale=0.25, **WINDOW),
    "exaone4": MIXED,
    "falcon": dict(num_kv_heads=2, new_decoder_architecture=True),
    "gemma2": dict(**HEADS, **MIXED, query_pre_attn_scalar=8, final_logit_softcapping=1.0),
    "gemma3_text": dict(**HEADS, **MIXED, query_pre_attn_scalar=8),
    "gpt_bigcode": GPT,
    "gpt_neo": dict(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4),
    "gpt_neox": dict(rotary_pct=1.0),
    "gpt_oss": dict(**HEADS, **MIXED, num_local_experts=4),
    "gptj": dict(**GPT, rotary_dim=8),
    "granite": dict(logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5),
    "granitemoe": dict(num_local_experts=4, num_experts_per_tok=2, logits_scaling=4.0),
    "lfm2": dict(layer_types=["full_attention", "conv"]),
    "ministral": dict(**HEADS, **WINDOW),
    "mistral": WINDOW,
    "mixtral": dict(num_local_experts=4),
    "mpt": dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "olmo3": WINDOW,
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "qwen2": dict(use_sliding_window=True, max_window_layers=0, **WINDOW),
    "qwen2_moe": dict(**EXPERTS, shared_expert_intermediate_size=16),
    "qwen3_moe": dict(**HEADS, **EXPERTS),
    "smollm3": dict(no_rope_layers=[1, 0]),
    "starcoder2": WINDOW,
    "xglm": dict(d_model=32, num_layers=2, attention_heads=4, ffn_dim=48),
    **dict.fromkeys("apertus arcee biogpt gpt2 llama nemotron olmo olmo2 phi phi3 stablelm".split(), {}),
    **dict.fromkeys("ernie4_5 gemma glm glm4 helium hunyuan_v1_dense qwen3".split(), HEADS),
}  # fmt: skip
PROMPTS = ["11 12", "13 14 15 16 17 18 19 20", "21 22 23 24 25"]


def numbers():
    """A tokenizer of the words 00 to 89, each its own id; 02 is EOS."""
    core = Tokenizer(models.WordLevel({f"{i:02d}": i for i in range(90)}, unk_token="03"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="02", pad_token="00")


def make(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **OF[family]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():  # as made, all positions would say nearly the same
        parameter.data.add_(0.15 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_loss_logits_and_batched_answers_are_those_of_transformers(family):
    model = make(family)
    embed = model.get_input_embeddings()
    vlm = VLM(torch.nn.Identity(), torch.nn.Linear(5, embed.embedding_dim), model, numbers()).eval()
    features = torch.randn(3, 4, 5)  # a prefix of 4
    rows = [[int(word) for word in text.split()] for text in PROMPTS]
    ids = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    mask = (ids > 0).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :1] = -100
    alone = [
        torch.cat([vlm.connector(features[k : k + 1]), embed(torch.tensor([row]))], dim=1)
        for k, row in enumerate(rows)
    ]
    for attention in ("eager", "sdpa")[: 1 + model._supports_sdpa]:
        model.set_attn_implementation(attention)
        logits = vlm(features, ids, mask)
        losses = 0
        for k, embeds in enumerate(alone):
            answers = torch.tensor([[-100] * 5 + rows[k][1:]])
            theirs = model(inputs_embeds=embeds, labels=answers)
            torch.testing.assert_close(
                logits[k, : len(rows[k])], theirs.logits[0, 4:], atol=1e-5, rtol=0
            )
            losses += theirs.loss * (len(rows[k]) - 1)
        loss = vlm(features, ids, mask, labels)
        torch.testing.assert_close(loss, losses / (labels != -100).sum(), atol=1e-5, rtol=0)
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = [
        vlm.tokenizer.decode(
            model.generate(
                inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), **settings
            )[0],
            skip_special_tokens=True,
        )
        for embeds in alone
    ]
    assert vlm.generate(features, PROMPTS, max_new_tokens=6) == expected
    assert len(set(expected)) > 1


def test_every_family_that_loads_is_tested_and_others_are_refused_by_name(tmp_path):
    assert FAMILIES == set(OF)
    BertConfig().save_pretrained(tmp_path)
    with refused("bert.*gpt2"):
        load_language_model(tmp_path)


def test_the_context_is_what_the_config_says_and_endless_where_it_says_nothing():
    lengths = {family: context_length(make(family).config) for family in ("gptj", "mpt", "bloom")}
    assert lengths == {"gptj": 64, "mpt": 64, "bloom": float("inf")}
