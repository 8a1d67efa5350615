"""The text side of the VLM: loading a language model, and turning conversations into token ids with labels.

A model with a chat template was trained on what that template renders, so it is asked and trained with exactly that. A
model without one reads the prompt, then " " and the answer, then EOS.
"""

import re
from inspect import signature
from pathlib import Path

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence

from vlm_lite.files import UserError, show
from vlm_lite.models.weights import faults_named, load_pretrained

IGNORE = -100  # a label that the loss leaves out
MARK = "\ue000"  # an answer that no one gives: shows where a template puts answers


# Families (`model_type` of config.json) that tests/models/test_families.py has proved equal to transformers in the VLM.
FAMILIES = frozenset(
    """
    apertus arcee biogpt bloom codegen cohere cohere2 ernie4_5 exaone4 falcon gemma gemma2
    gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe
    helium hunyuan_v1_dense lfm2 llama ministral mistral mixtral mpt nemotron olmo olmo2 olmo3
    opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe smollm3 stablelm starcoder2 xglm
    """.split()
)


def load_language_model(folder_or_id):
    """(language model, tokenizer) from a folder, a hub id or a .gguf file: a causal model of transformers, fp32, eval mode.

    Without a GPU its attention is "eager": PyTorch's fused bf16 kernel has a gradient several times slower on a CPU.
    A GGUF file's quantised tensors are dequantised: the weights are those that it stands for.
    UserError when the files are missing or cut short, or lack weights that the model needs.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source, options = folder_or_id, {}
    if str(source).endswith(".gguf"):
        source, options = Path(source).parent, {"gguf_file": Path(source).name}
    with faults_named(folder_or_id):
        config = AutoConfig.from_pretrained(source, **options)
        family = config.model_type
        if family not in FAMILIES:
            raise UserError(
                f"{folder_or_id} is of the type {show(family)}. Take a language model of a type proved to work in "
                f"the VLM: {', '.join(sorted(FAMILIES))}."
            )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if options:  # transformers 5.15 gives a GGUF's tokenizer the file's BOS for its EOS
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    options["attn_implementation"] = None if torch.cuda.is_available() else "eager"
    load = AutoModelForCausalLM.from_pretrained
    return load_pretrained(load, source, exact=False, **options), tokenizer


def context_length(config):
    """How many vectors a language model reads at most; infinity where it has no such limit (BLOOM)."""
    longest = getattr(config, "max_seq_len", float("inf"))  # MPT's name
    return getattr(config, "max_position_embeddings", longest)


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


def conversation(tokenizer, turns, system=None):
    """(ids, labels), lists of equal length, of a conversation: a list of (prompt, answer) pairs of strings.

    labels repeat ids at the answers and at the token(s) that end each, and are -100 elsewhere. With a chat template, ids
    are those of `tokenizer.apply_chat_template` for the whole conversation, with a system message where `system` gives one
    or the template always writes one. The text is tokenized whole: a token that reaches from the prompt into the answer
    counts as the answer's. ValueError for an empty text; UserError for a template that rejects the conversation, changes
    an answer or ends none.
    """
    prompts, answers = zip(*turns, strict=True)
    asked = tokenize(tokenizer, prompts, what="prompt")
    said = tokenize(tokenizer, [" " + answer.lstrip() for answer in answers], what="answer")
    if tokenizer.chat_template:
        text, spans = _render(tokenizer, prompts, answers, system)
        tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
        hit = [any(b > start and a < stop for start, stop in spans) for a, b in offsets]
        return ids, [i if is_answer else IGNORE for i, is_answer in zip(ids, hit, strict=True)]
    if system is not None:
        raise UserError(f"{tokenizer.name_or_path!r} has no chat template for a system message.")
    ids, labels = [], []
    for prompt, answer in zip(asked, said, strict=True):
        answer = [*answer, special_ids(tokenizer)[0]]
        ids += prompt + answer
        labels += [IGNORE] * len(prompt) + answer
    return ids, labels


def pack(tokenizer, rows):
    """B lists of conversations -> ids (B, T), mask (B, T, T), labels (B, T): each conversation reads itself alone."""
    parts = [[conversation(tokenizer, turns) for turns in row] for row in rows]
    ids = [torch.tensor([i for part, _ in row for i in part]) for row in parts]
    labels = [torch.tensor([i for _, part in row for i in part]) for row in parts]
    whose = [torch.tensor([n for n, (part, _) in enumerate(row) for _ in part]) for row in parts]
    whose = pad_sequence(whose, True, -1)  # (B, T): the number of the conversation
    mask = (whose[:, :, None] == whose[:, None, :]).tril()
    pad = special_ids(tokenizer)[1]
    return pad_sequence(ids, True, pad), mask, pad_sequence(labels, True, IGNORE)


def _render(tokenizer, prompts, answers, system):
    """(what the chat template makes of a conversation, the characters (start, stop) of each answer with its end)."""
    whose = f"the chat template of {tokenizer.name_or_path!r}"

    def render(answers, ask=False):
        messages = [dict(role="system", content=system)] * (system is not None)
        for prompt, answer in zip(prompts, answers, strict=False):
            messages += dict(role="user", content=prompt), dict(role="assistant", content=answer)
        try:
            return tokenizer.apply_chat_template(
                messages[: len(messages) - ask], tokenize=False, add_generation_prompt=ask
            )
        except TemplateError as error:
            raise UserError(f"{whose} rejects the conversation: {error}") from error

    text, pattern = render(answers), re.escape(render([MARK] * len(answers)))
    for answer in answers:  # which many templates strip
        pattern = pattern.replace(MARK, rf"(\s*{re.escape(answer.strip())}\s*)", 1)
    found = re.fullmatch(pattern, text)
    if not found or found.re.groups != len(answers):
        raise UserError(f"{whose} does not repeat every answer as it is: {show(text)}.")
    # A turn ends with the first special token after its answer, or else with all that the template writes there.
    end = found.end(len(answers))
    after = tokenizer(text[end:], add_special_tokens=False, return_offsets_mapping=True)
    tokens = zip(after["input_ids"], after["offset_mapping"], strict=True)
    special = [b for i, (_, b) in tokens if i in tokenizer.added_tokens_decoder]
    ending, spans = text[end:][: special[0]] if special else text[end:].rstrip(), []
    for turn in range(len(answers)):
        start, end = found.span(turn + 1)
        if not ending or not text.startswith(ending, end):
            raise UserError(f"{whose} does not end every answer: {show(text[end:])} follows one.")
        # Where the model is asked, some templates leave out the space before the answer, which is then for it to write.
        given = render(answers[: turn + 1], ask=True)
        if text[:start].startswith(given) and not text[len(given) : start].strip():
            start = len(given)
        spans.append((start, end + len(ending)))
    return text, spans


def prompt_ids(tokenizer, prompt, system=None):
    """The ids of a prompt up to where its answer begins: what `conversation` has there, and so what was trained."""
    if not tokenizer.chat_template:
        return tokenize(tokenizer, [prompt], what="prompt")[0]
    ids, labels = conversation(tokenizer, [(prompt, "a")], system)
    return ids[: next(i for i, label in enumerate(labels) if label != IGNORE)]


def stop_ids(tokenizer):
    """The ids any of which ends an answer: EOS, and with a chat template the special token that ends its turns.

    UserError where the template ends a turn with plain text, of which no single token could stop the answer.
    """
    *_, last = (i for i in conversation(tokenizer, [("a", "a")])[1] if i != IGNORE)
    if last not in tokenizer.added_tokens_decoder:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} ends an answer with no special token of this "
            "tokenizer. Load both from one folder, or add that token (tokenizer.add_tokens)."
        )
    return sorted({last, tokenizer.eos_token_id} - {None})


def prompt_batch(tokenizer, prompts):
    """B prompts -> input_ids and attention_mask (1 text, 0 padding), each (B, T), padded on the right."""
    rows = [torch.tensor(prompt_ids(tokenizer, text)) for text in prompts]
    mask = pad_sequence([torch.ones_like(row) for row in rows], True)
    return pad_sequence(rows, True, special_ids(tokenizer)[1]), mask


def block_mask(labels):
    """Labels (B, T) of turns in a row -> bools (B, T, T): position i may read j, before it in the same turn."""
    answer = labels != IGNORE
    begins = F.pad(answer[:, :-1] & ~answer[:, 1:], (1, 0))  # what follows an answer begins a turn
    turn = begins.cumsum(dim=1)  # (B, T) 0, 1, 2, ...
    return (turn[:, :, None] == turn[:, None, :]).tril()


def prefixed(language_model, embeds, text_mask):
    """[prefix][text], embeds (B, Q + T, D), as a causal model of transformers takes it, with positions and mask.

    text_mask: (B, T), 1 text and 0 padding; or (B, T, T) of `block_mask`, where every text position reads the prefix too.
    """
    limit = context_length(language_model.config)
    assert embeds.shape[1] <= limit, f"{embeds.shape[1]} positions, but it reads only {limit}"
    num_prefix = embeds.shape[1] - text_mask.shape[1]
    if text_mask.ndim == 2:  # the model itself adds the causal mask
        mask = F.pad(text_mask, (num_prefix, 0), value=1)  # (B, Q + T)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    else:
        reads = F.pad(text_mask, (num_prefix, 0, num_prefix, 0), value=True).tril()
        positions = reads.sum(dim=2) - 1  # (B, Q + T)
        mask = torch.zeros(reads.shape, device=reads.device, dtype=embeds.dtype)
        mask = mask.masked_fill(~reads, torch.finfo(mask.dtype).min)[:, None]
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}


def padding_first(inputs):
    """[prefix][text][padding] of `prefixed` -> [padding][prefix][text]: each row's new tokens follow its own text."""
    order = inputs["attention_mask"].argsort(dim=1, stable=True)
    rows = torch.arange(len(order), device=order.device)[:, None]
    return {name: value[rows, order] for name, value in inputs.items()}


def cache_name(language_model):
    """The argument of `forward` that takes the KV cache; transformers 5.24 renamed it."""
    known = signature(language_model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def decode(tokenizer, steps, count):
    """What greedy decoding took, a (count,) tensor of token ids a step -> `count` answers, each up to the first of `stop_ids`."""
    stops = stop_ids(tokenizer)
    tokens = torch.stack(steps, dim=1).tolist() if steps else [[]] * count
    ended = [row[: next((k for k, i in enumerate(row) if i in stops), None)] for row in tokens]
    return [text.strip() for text in tokenizer.batch_decode(ended, skip_special_tokens=True)]
