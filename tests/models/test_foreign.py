"""Parts in other formats are loaded exactly, or refused with a clear line."""

import pytest
import timm
import torch
from gguf import GGUFWriter
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vlm_lite.files import UserError
from vlm_lite.models import foreign
from vlm_lite.models.text import load_language_model

NAME = "tf_efficientnet_lite0"
WORDS = ["<unk>", "<s>", "<|end|>", "a", "b", "c", "ab", *"defghijklmnop"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(the weights of a random model, the file that holds them in order under other names)."""
    torch.manual_seed(0)
    state = timm.create_model(NAME).state_dict()
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save({f"other.{k}": value for k, value in enumerate(state.values())}, path)
    return state, path


@pytest.mark.parametrize("side", [1, 2])
def test_a_map_is_averaged_over_a_grid_and_normalised_as_timm_says(weights, side):
    state, path = weights
    encoder = foreign.load_timm(NAME, path, side)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    model = timm.create_model(NAME).eval()
    model.load_state_dict(state)
    values = model.forward_features((images / 255 - 0.5) / 0.5)  # (2, 1280, 2, 2)
    expected = values if side == 2 else values.mean((2, 3), keepdim=True)
    torch.testing.assert_close(encoder.patch_features(images), expected.flatten(2).mT)
    assert encoder.feature_width == 1280 and not encoder.training


def test_the_patches_of_a_vit_are_a_map_too():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    encoder = foreign.TimmVision(model, side=4)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    patches = model.forward_features((images / 255 - 0.5) / 0.5)[:, 1:]
    torch.testing.assert_close(encoder.patch_features(images), patches)


def test_names_and_files_that_do_not_fit_are_refused(weights, tmp_path):
    state, path = weights
    with pytest.raises(UserError, match="timm has no model 'efficientnet_lite99'"):
        foreign.load_timm("efficientnet_lite99")
    bare = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(UserError, match=f"timm has no weights for '{bare}'"):
        foreign.load_timm(bare)
    with pytest.raises(UserError, match="holds 296 tensors, and timm's resnet10t has"):
        foreign.load_timm("resnet10t", path)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cut.pth cannot be read as weights"):
        foreign.load_timm(NAME, cut)
    torch.save(dict(enumerate(reversed(state.values()))), cut)
    with pytest.raises(UserError, match="cut.pth does not fit this EfficientNet"):
        foreign.load_timm(NAME, cut)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    sizes |= dict(num_key_value_heads=2, vocab_size=len(WORDS), max_position_embeddings=64)
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval()


def write_gguf(path, model, architecture="llama"):
    """The model as llama.cpp writes it: its own names, and rows of query and key in another order."""
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = model.state_dict()
    for name, theirs in names.items():
        value = state[f"model.layers.0.{name}.weight"]
        heads = {"attn_q": 4, "attn_k": 2}.get(theirs)
        if heads:
            value = value.view(heads, 2, 4, 32).transpose(1, 2).reshape(-1, 32)
        writer.add_tensor(f"blk.0.{theirs}.weight", value.numpy().copy())
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_a_folder_with_the_same_model_and_the_template_asked_for(
    llama, tmp_path
):
    path = write_gguf(tmp_path / "model.gguf", llama)
    folder = foreign.convert_gguf(path, tmp_path / "folder", "{{ messages[0]['content'] }}")
    model, tokenizer = load_language_model(folder)
    ids = torch.tensor([[3, 6, 5, 7]])
    torch.testing.assert_close(model(ids).logits, llama(ids).logits)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tokenizer("ab")["input_ids"] == [6] and tokenizer.eos_token == "<|end|>"
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 2


@pytest.mark.parametrize("kept", [0, 40, 500, -300])
def test_a_gguf_file_that_is_cut_is_refused_and_leaves_nothing(llama, tmp_path, kept):
    path = write_gguf(tmp_path / "model.gguf", llama)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="model.gguf cannot be read as GGUF"):
        foreign.convert_gguf(path, tmp_path / "folder")
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]


def test_a_gguf_file_of_another_architecture_is_refused_by_name(llama, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", llama, "whisper")
    with pytest.raises(UserError, match="architecture 'whisper'.*llama"):
        foreign.convert_gguf(path, tmp_path / "folder")
