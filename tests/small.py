"""Models of the real forms with few weights, the same ones at every call."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vlm_lite.files import UserError
from vlm_lite.models.clip import CLIP

WORDS = (
    "<pad> <unk> <image> <user> <assistant> <eos> question : answer caption is it "
    "red blue round small yes no"
).split()
EOS = WORDS.index("<eos>")
BPE = [  # a GGUF's tokens: any text
    *("<unk>", "<s>", "<|end|>"),
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *("ab", "abd"),
]
PROMPTS = [
    "caption :",
    "question : is it red answer :",
    "question : is it small round blue answer :",
]
TURNS = [
    [("caption :", "small red")],
    [("question : is it red answer :", "yes"), ("caption :", "blue round")],
]


def refused(message):
    """A context in which a user's mistake is refused in words that match `message`."""
    return pytest.raises(UserError, match=message)


def tokenizer(**special):
    """A tokenizer of WORDS. special: tokens by their names, or None for one that it is to lack."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{k: v for k, v in special.items() if v})


def clip(vocab_size, eos_token_id=2, *, image_size=32, patch_size=16, width=16, act="gelu"):
    """A CLIP of OpenAI's form. (An `eos_token_id` of 2 is the wrong one of their files.)"""
    shared = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2}
    shared |= {"num_attention_heads": 2, "hidden_act": act, "projection_dim": 16}
    vision = {"image_size": image_size, "patch_size": patch_size, **shared}
    text = {"vocab_size": vocab_size, "eos_token_id": eos_token_id, **shared}
    torch.manual_seed(0)
    return CLIP(CLIPConfig(projection_dim=16, vision_config=vision, text_config=text)).eval()


def gpt2(vocab_size, width=32, **settings):
    """A GPT-2 of one layer that reads 256 tokens."""
    sizes = {"n_embd": width, "n_layer": 1, "n_head": 2, "n_positions": 256}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **(sizes | settings)))


def llama():
    """A Llama of one layer, as SmolLM2 is one, with tied embeddings."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    sizes |= dict(num_key_value_heads=2, vocab_size=len(BPE), max_position_embeddings=4096)
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval()


def write_gguf(path, model, architecture="llama", chat_template=None):
    """The model as llama.cpp writes it: its own names, and rows of query and key in another order."""
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_context_length(4096)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(BPE))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(BPE)
    writer.add_token_types([3, 3, 3] + [1] * (len(BPE) - 3))
    writer.add_token_merges(["a b", "ab d"])  # two: transformers 5.15 reads a list of one as text
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if chat_template:
        writer.add_chat_template(chat_template)
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


def in_two_processes(file, *arguments):
    """Run a test file as a program on two CPU processes, and return what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, file, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def edited(reference, *edits):
    """The function or class `reference` with its source changed: what stands there, what instead, and so on."""
    source, names = inspect.getsource(reference), dict(vars(sys.modules[reference.__module__]))
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in source, f"{reference.__name__} has no {old!r}"
        source = source.replace(old, new)
    exec(source, names)
    return names[reference.__name__]
