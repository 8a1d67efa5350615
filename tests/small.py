"""Models of the real forms with few weights, the same ones at every call."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from vlm_lite.models.clip import CLIP

WORDS = (
    "<pad> <unk> <image> <user> <assistant> <eos> question : answer caption is it "
    "red blue round small yes no"
).split()
EOS = WORDS.index("<eos>")
PROMPTS = [
    "caption :",
    "question : is it red answer :",
    "question : is it small round blue answer :",
]
TURNS = [
    [("caption :", "small red")],
    [("question : is it red answer :", "yes"), ("caption :", "blue round")],
]


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
