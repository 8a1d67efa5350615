"""Conversations as token ids: what is trained is what the chat template renders, and the answers alone have labels."""

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests import small
from vlm_lite.files import UserError
from vlm_lite.models.text import IGNORE, conversation, prompt_ids, stop_ids

EACH = "{% for m in messages %}"
END = "{% endfor %}"
SMOLLM2 = (
    EACH + "{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant"
    "<|im_end|>\n{% endif %}<|im_start|>{{ m.role + '\n' + m.content + '<|im_end|>' + '\n' }}" + END
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
QWEN3 = (  # puts an empty thought in front of the last answer, which it doesn't put where it asks
    EACH + "<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n" + END
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
LLAMA2 = (
    EACH + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}" + END
)  # fmt: skip
LLAMA3 = (
    "{{ bos_token }}" + EACH + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>" + END
    + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)  # fmt: skip
MISTRAL = (
    "{{ bos_token }}" + EACH + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}" + END
)  # fmt: skip
ZEPHYR = (
    EACH + "{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}\n{% endif %}" + END
)  # fmt: skip
GEMMA = (
    "{{ bos_token }}" + EACH + "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + "
    "m.content | trim + '<end_of_turn>\n' }}" + END
    + "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)  # fmt: skip
PHI3 = (
    EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}" + END
    + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)  # fmt: skip
COURSE = (  # in words, for a tokenizer that splits at spaces
    EACH + "{{ '<user> ' + m.content if m.role == 'user' else ' <assistant> ' + m.content + ' <eos>' }}"
    + END + "{% if add_generation_prompt %} <assistant>{% endif %}"
)  # fmt: skip
ENDS = {  # of each template, what ends an answer
    SMOLLM2: "<|im_end|>", QWEN3: "<|im_end|>", LLAMA2: " </s>", LLAMA3: "<|eot_id|>", MISTRAL: "</s>",
    ZEPHYR: "</s>", GEMMA: "<end_of_turn>", PHI3: "<|end|>",
}  # fmt: skip
SPECIAL = (
    "<s> </s> <unk> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> "
    "<start_of_turn> <end_of_turn> <|user|> <|assistant|> <|end|> <think> </think>"
).split()
CORPUS = [
    "what is in the image?\nA red circle, and a blue square: two!! assistant:! user [INST] [/INST]"
]


def byte_level(trim):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.ByteLevel(trim_offsets=trim)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    return core


def metaspace():
    """As Llama 2 has it: a space in front of the text, spaces as part of words, bytes for lines and unknown characters."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    corpus = CORPUS[0].splitlines()
    alphabet = sorted(set("".join(corpus)) | {"▁"})
    special = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    core.train_from_iterator(corpus * 3, trainer)
    return core


CORES = {"bytes": byte_level(False), "trimmed": byte_level(True), "metaspace": metaspace()}


def tokenizer_of(core, template):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=CORES[core], bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def rendered(tokenizer, turns, **options):
    roles = ("user", "assistant")
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(roles, turn, strict=False)
    ]
    return tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]


TEXTS = st.text(st.sampled_from("aé日 :!?\n,[]🙂T"), min_size=1, max_size=12).filter(str.strip)


def trained(pair):
    return pair[1] != IGNORE


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("template", ENDS)
@settings(max_examples=10, deadline=None)
@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_a_conversation_is_what_the_chat_template_renders_and_the_answers_are_its_labels(
    core, template, turns
):
    tokenizer = tokenizer_of(core, template)
    ids, labels = conversation(tokenizer, turns)
    assert ids == rendered(tokenizer, turns)
    assert all(label in (IGNORE, i) for i, label in zip(ids, labels, strict=True))
    runs = [
        [i for i, _ in run] for kept, run in groupby(zip(ids, labels, strict=True), trained) if kept
    ]
    said = [tokenizer.decode(run, clean_up_tokenization_spaces=False).strip() for run in runs]
    strip = str.strip if "trim" in template or "strip" in template else str.lstrip
    assert said == [strip(answer) + ENDS[template] for _, answer in turns]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("template", ENDS)
def test_the_prompt_that_is_asked_is_the_start_of_what_was_trained(core, template):
    tokenizer = tokenizer_of(core, template)
    for answer in ("A red circle.", "é", "日", "[a]", ": two", "!", "🙂", "a"):
        ids, labels = conversation(tokenizer, [("what is it?", answer)])
        asked = prompt_ids(tokenizer, "what is it?")
        assert ids[: len(asked)] == asked, answer
        assert set(labels[: len(asked)]) == {IGNORE} and IGNORE != labels[len(asked)]
    if template != QWEN3:
        assert asked == rendered(tokenizer, [("what is it?",)], add_generation_prompt=True)
    end = tokenizer.convert_tokens_to_ids(ENDS[template].strip())
    assert set(stop_ids(tokenizer)) == {end, tokenizer.eos_token_id}


def test_a_word_tokenizer_has_a_template_too_and_without_one_an_answer_ends_with_eos():
    tokenizer = small.tokenizer()
    turns = [("is it red", "yes"), ("is it blue", "no")]
    plain = "is it red yes <eos> is it blue no <eos>"
    chat = "<user> is it red <assistant> yes <eos> <user> is it blue <assistant> no <eos>"
    for template, text in ((None, plain), (COURSE, chat)):
        tokenizer.chat_template = template
        ids, labels = conversation(tokenizer, turns)
        assert tokenizer.convert_ids_to_tokens(ids) == text.split()
        answers = [i for i in labels if i != IGNORE]
        assert tokenizer.convert_ids_to_tokens(answers) == "yes <eos> no <eos>".split()
        assert labels[-2:] == ids[-2:] and stop_ids(tokenizer) == [tokenizer.eos_token_id]
        asked = prompt_ids(tokenizer, "is it red")
        assert ids[: len(asked)] == asked and labels[len(asked)] == ids[len(asked)]


def test_a_system_message_stands_where_the_template_puts_it():
    tokenizer = tokenizer_of("bytes", SMOLLM2)
    forced, given = (
        tokenizer.decode(prompt_ids(tokenizer, "hi", system)) for system in (None, "Be brief.")
    )
    assert "helpful" in forced and "Be brief." in given and "helpful" not in given


@pytest.mark.parametrize(
    ("template", "system", "what"),
    [
        (GEMMA, "Be brief.", "System role not supported"),
        (None, "Be brief.", "system message"),
        (SMOLLM2.replace("m.content", "m.content | upper"), None, "as it is"),
        (EACH + "{{ m.content if m.role == 'user' }}<|im_end|>" + END, None, "as it is"),
        (EACH + "\n{{ m.role }}: {{ m.content }}" + END, None, "end"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused_by_what_it_does(template, system, what):
    with pytest.raises(UserError, match=what):
        conversation(tokenizer_of("bytes", template), [("a", "b"), ("c", "d")], system)


def test_turns_that_say_nothing_and_a_turn_that_ends_in_plain_text_are_refused():
    tokenizer = tokenizer_of("bytes", SMOLLM2)
    for turns in ([("a", " ")], [("", "a")], [("a", "b"), ("c", "")]):
        with pytest.raises(ValueError, match="is empty"):
            conversation(tokenizer, turns)
    tokenizer.chat_template = EACH + "{{ m.role }}: {{ m.content }}###\n" + END
    with pytest.raises(UserError, match="special token"):
        stop_ids(tokenizer)


def test_a_token_that_reaches_from_the_prompt_into_the_answer_is_the_answers():
    tokenizer = tokenizer_of("bytes", EACH + "{{ m.role }}:{{ m.content }}###\n" + END)
    assert tokenizer.tokenize(":!") == [":!"]
    ids, labels = conversation(tokenizer, [("a", "!b"), ("c", "d")])
    assert tokenizer.decode([i for i in labels if i != IGNORE]) == ":!b###d###"
