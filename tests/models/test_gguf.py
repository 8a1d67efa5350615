"""A language model in a GGUF file is loaded exactly, or refused with a clear line."""

import copy

import pytest
import torch

from tests import small
from tests.small import BPE, refused
from vlm_lite.models.text import load_language_model


@pytest.fixture(scope="module")
def llama():
    return small.llama()


def test_a_gguf_file_is_the_same_model_with_its_tokenizer_and_can_be_copied_and_cast(
    llama, tmp_path
):
    model, tokenizer = load_language_model(
        small.write_gguf(tmp_path / "model.gguf", llama, chat_template="{{ messages }}")
    )
    ids = torch.tensor([[3, 60, 250, 7]])
    torch.testing.assert_close(model(ids).logits, llama(ids).logits)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (
        tokenizer("ab c")["input_ids"] == [BPE.index(t) for t in ("ab", "Ġ", "c")]
        and tokenizer.eos_token == "<|end|>"
    )
    assert tokenizer.chat_template == "{{ messages }}"
    assert copy.deepcopy(model).to(torch.bfloat16)(ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [0, 40, 500, -300])
def test_a_gguf_file_that_is_cut_is_refused(llama, tmp_path, kept):
    path = small.write_gguf(tmp_path / "model.gguf", llama)
    path.write_bytes(path.read_bytes()[:kept])
    with refused("loaded from .*model.gguf.*cut short"):
        load_language_model(path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]


def test_a_gguf_file_that_is_missing_or_of_another_architecture_is_refused_by_name(llama, tmp_path):
    path = small.write_gguf(tmp_path / "model.gguf", llama, "whisper")
    with refused("model.gguf.*architecture whisper is not supported.*take another"):
        load_language_model(str(path))
    path = small.write_gguf(tmp_path / "stateless.gguf", llama, "mamba")  # read, but not in the VLM
    with refused("stateless.gguf is of the type 'mamba'.*llama"):
        load_language_model(path)
    with refused("loaded from .*other.gguf"):
        load_language_model(str(tmp_path / "other.gguf"))
