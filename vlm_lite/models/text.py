"""The text side of the VLM: loading a language model, and turning conversations into batches with labels."""

from pathlib import Path

import torch

from vlm_lite.files import UserError, read_json
from vlm_lite.models.weights import read_weights

IGNORE = -100  # a label that the loss leaves out


def load_language_model(folder_or_id):
    """(language model, tokenizer) from a folder or hub id: a causal model of transformers, fp32, in eval mode.

    Without a GPU its attention is "eager": PyTorch's fused bf16 kernel has a gradient several times slower on a CPU.
    UserError when the files are missing or cut short, or lack weights that the model needs.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    attention = "sdpa" if torch.cuda.is_available() else "eager"
    logging.disable_progress_bar()  # its bar of weights loaded; downloads keep theirs
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder_or_id,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            use_safetensors=True,
        )  # pickles can run code
        tokenizer = AutoTokenizer.from_pretrained(folder_or_id)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        here = sorted(Path(folder_or_id).glob("*.*"))
        for path in here:  # the file at fault, by its name
            if path.suffix in (".json", ".safetensors"):
                (read_json if path.suffix == ".json" else read_weights)(path)
        holds = f"; the folder holds {', '.join(path.name for path in here)}" if here else ""
        raise UserError(
            f"no language model could be loaded from {str(folder_or_id)!r} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}{holds}). Check the name, the network and the folder's files "
            "(config.json, model.safetensors, tokenizer.json)."
        ) from error
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise UserError(
            f"{folder_or_id}: the weights lack or misshape {len(wrong)} parameters, for example "
            f"{wrong[0]}; they would stay random. Make or download the model again."
        )
    return model.eval(), tokenizer


def special_ids(tokenizer):
    """(id of EOS, id of padding). Padding is EOS where a tokenizer has none: harmless, since masks go by length."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no EOS token, and without one no answer ends. "
            "Set tokenizer.eos_token, for example '<eos>' or '<|endoftext|>'."
        )
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return tokenizer.eos_token_id, pad


def tokenize(tokenizer, texts, *, what="text"):
    """A list of strings -> a list of lists of token ids, without the BOS that some tokenizers add.

    ValueError naming the first that is empty, or of which the tokenizer knows no character.
    """
    for i, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"{what} {i} is empty ({text!r}). Give it at least one word.")
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    if not all(ids):
        i = ids.index([])
        raise ValueError(
            f"{what} {i} ({texts[i]!r}) has no character that the tokenizer knows. Write it in the "
            "language that the model was trained on, or take another model."
        )
    return ids


def build_text_batch(tokenizer, exchanges):
    """Conversations -> {"input_ids", "attention_mask", "labels"}, each (B, T), padded on the right.

    exchanges: for each row a list of (prompt, answer) pairs of strings. A row is prompt, " " + answer, EOS, and so on
    for each pair. Labels hold the answers and their EOS; prompts and padding are -100. ValueError names an empty text.
    """
    eos, pad = special_ids(tokenizer)
    if not exchanges:
        raise ValueError(
            "no rows: exchanges is empty. Give one list of (prompt, answer) pairs for each picture."
        )
    for i, row in enumerate(exchanges):
        if (
            not row
            or isinstance(row, str)
            or any(len(pair) != 2 or isinstance(pair, str) for pair in row)
        ):
            raise ValueError(
                f"row {i} is {row!r}; expected a list of one or more (prompt, answer) pairs."
            )
    pairs = [pair for row in exchanges for pair in row]
    prompts = tokenize(tokenizer, [prompt for prompt, _ in pairs], what="prompt of exchange")
    answers = tokenize(
        tokenizer, [" " + answer.lstrip() for _, answer in pairs], what="answer of exchange"
    )
    tokenized = iter(zip(prompts, answers, strict=True))
    rows, labels = [], []
    for row in exchanges:
        ids, targets = [], []
        for _ in row:
            prompt, answer = next(tokenized)
            ids += prompt + answer + [eos]
            targets += [IGNORE] * len(prompt) + answer + [eos]
        rows.append(ids)
        labels.append(targets)
    length = max(len(ids) for ids in rows)
    # The mask goes by length, not by `ids == pad`: where padding is EOS, that would erase the true EOS as well.
    return {
        "input_ids": torch.tensor([ids + [pad] * (length - len(ids)) for ids in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (length - len(ids)) for ids in rows]
        ),
        "labels": torch.tensor(
            [targets + [IGNORE] * (length - len(targets)) for targets in labels]
        ),
    }
