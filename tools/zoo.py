"""Make again the checkpoints of `data/zoo` (`vlm-lite zoo build NAME`), each with its card.

`shapes-gpt2` is a small GPT-2 that reads: trained on scenes *in words* and questions about them, it never met an image.
`shapes-clip` is notebook 01's CLIP, trained longer, with Muon and almost right captions.
`shapes-vlm` is the trained connector between them, for notebook 00.
`shapes-llava` is notebook 04's projector and what its longer mixed stage changed in the language model.
All are in Hugging Face layout (config.json, model.safetensors in fp16, tokenizer) with a model card beside them.
"""

import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.data import shapes
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.embed import embed_images, embed_strings
from vlm_lite.encoded import probe
from vlm_lite.files import UserError, atomic_dir, atomic_write, write_json
from vlm_lite.lessons import llava, reading
from vlm_lite.lessons.retrieval import recall_at_k
from vlm_lite.lessons.shipped import (
    LONGER,
    ask_fixed,
    llava_parts,
    train_llava,
    train_long,
    train_long_clip,
)
from vlm_lite.lessons.world import any_scene
from vlm_lite.models.layout import save_clip, save_trained, to_transformers
from vlm_lite.models.vlm import save_vlm
from vlm_lite.optim import adamw
from vlm_lite.profiles import PROFILES, get_compute

GPT2 = dict(
    n_embd=256,
    n_layer=4,
    n_head=4,
    n_positions=256,
    activation_function="gelu_pytorch_tanh",
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)
DOCUMENT_TOKENS = 160


def _document(seed, index):
    """(ids, whether each is output) of one document, cut between its parts to DOCUMENT_TOKENS."""
    tokenizer, rng = make_tokenizer(), np.random.default_rng([seed, index])
    description, exchanges = reading.document(any_scene, rng, exchanges=6)
    segments = [description, *(text for p, a in exchanges for text in (p, f"{a} <eos>"))]
    ids, is_output = [], []
    for part, segment in enumerate(tokenizer(segments, add_special_tokens=False)["input_ids"]):
        if len(ids) + len(segment) > DOCUMENT_TOKENS:
            break
        ids += segment
        is_output += [part > 0 and part % 2 == 0] * len(segment)
    return torch.tensor(ids), torch.tensor(is_output)


def text_corpus(documents, *, seed=0):
    """The language model's text: ids (documents, T) and is_output (documents, T), T at most 160, by length.

    An output is an answer, a caption or an assistant's sentence with its `<eos>`.
    """
    with ProcessPoolExecutor() as pool:
        made = list(pool.map(_document, [seed] * documents, range(documents), chunksize=500))
    made.sort(key=lambda document: len(document[0]))
    return (pad_sequence(parts, batch_first=True) for parts in zip(*made, strict=True))


def fit(model, batches, loss_fn, *, steps, lr, seed):
    """Train `model` on what `batches()` gives, a list of tensors; loss_fn(model, batch) -> (). Returns the History."""
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = adamw(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    kept = {"every": 500, "log_every": 50, "settings": {"lr": lr}}
    run = Checkpoint("zoo-gpt2", model, optimizer, scheduler, seed=seed, **kept)
    for _ in run.steps(steps):
        batch = [part.to(accelerator.device) for part in batches()]
        with accelerator.autocast():
            loss = loss_fn(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss.detach())
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return run.history


def build_gpt2(folder, *, steps=12_000, documents=100_000, batch_size=32, lr=1e-3, seed=0):
    """Train the language model on text only and write it to `folder`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    started = time.time()
    tokenizer = make_tokenizer()
    eos = tokenizer.eos_token_id
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
            **GPT2,
        )
    )
    ids, is_output = text_corpus(documents, seed=seed)
    window = (
        16 * batch_size
    )  # documents of nearly one length share a batch, so that little of it is padding

    def batches():
        start = int(torch.randint(len(ids) - window, (1,)))
        rows = start + torch.randperm(window)[:batch_size]
        tokens, outputs = ids[rows], is_output[rows]
        longest = 16 * -(
            -int((tokens > 0).sum(1).max()) // 16
        )  # few shapes: a CPU plans its matmuls once for each
        return tokens[:, :longest], outputs[:, :longest]

    def loss_fn(model, batch):
        tokens, outputs = batch
        hidden = model.transformer(tokens, use_cache=False).last_hidden_state[:, :-1]
        target, learn = tokens[:, 1:], outputs[:, 1:]
        logits = model.lm_head(hidden).float()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(
            target
        )
        # Descriptions and questions are random: nothing is to be learned from them but their grammar.
        weight = torch.where(learn, 1.0, 0.1) * (target > 0)
        return (loss * weight).sum() / weight.sum()

    settings = {"steps": steps, "lr": lr, "seed": seed}
    history = fit(model, batches, loss_fn, **settings)
    model.eval()
    with atomic_dir(folder) as temporary:
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _card(
            temporary,
            "shapes-gpt2",
            "a small GPT-2 trained on text about scenes; it never saw an image",
            settings | {"documents": documents, "batch_size": batch_size},
            history,
            {"training loss": history.losses[-1]},
            started,
        )


def _card(folder, name, what, settings, history, scores, started):
    """Write a model card (README.md) and the same facts for programs (card.json) into `folder`."""
    facts = {
        "name": name,
        "command": f"vlm-lite zoo build {name}",
        "settings": settings,
        "scores": scores,
        "seconds": round(history.seconds[-1]),
        "seconds_in_all": round(time.time() - started),
        "hardware": get_compute().hardware,
        "torch": torch.__version__,
    }
    write_json(folder / "card.json", facts)
    page = f"""# {name}

{what[0].upper()}{what[1:]}.

Made by `{facts["command"]}` with settings `{json.dumps(settings)}`
in {facts["seconds"]} s of training on {facts["hardware"]}; torch {facts["torch"]}.
Licence: Apache-2.0, like the course.

## Scores

```json
{json.dumps(scores, indent=1)}
```
"""
    with atomic_write(folder / "README.md", "w") as file:
        file.write(page)


def build_clip(folder, *, seed=0, **sizes):
    """Train notebook 01's CLIP longer, as notebook 05b does; write it to `folder`. sizes: of `train_long_clip`."""
    started, profile, tokenizer = time.time(), PROFILES["tiny"], make_tokenizer()
    model, history = train_long_clip(seed, profile, **sizes)
    trained, scores = to_transformers(model), {}
    for split in ("val", "novel"):
        images, texts, _ = shapes.load_pairs(split, profile.val_images)
        first = [five[0] for five in texts]
        u, v = embed_images(trained, images), embed_strings(trained, first, tokenizer)
        found = recall_at_k(u, v, torch.arange(len(first)), texts=first)
        scores[split] = {
            way: {f"R@{k}": round(v, 4) for k, v in recall.items()} for way, recall in found.items()
        }
    with atomic_dir(folder) as temporary:
        save_clip(model, temporary, dtype=torch.float16)
        tokenizer.save_pretrained(temporary)
        _card(
            temporary,
            "shapes-clip",
            "the CLIP of notebook 01, trained longer, with Muon and almost right captions",
            {"steps": history.steps[-1], "seed": seed, **sizes},
            history,
            scores,
            started,
        )


def build_vlm(folder, *, seed=0):
    """Train the connector between the shipped models, as the study `shapes_vlm` does; write it to `folder`."""
    started = time.time()
    write_vlm(folder, *train_long(seed), started, seed)


def write_vlm(folder, model, history, val, started, seed):
    """Write the connector of `train_long`, and its card, to `folder`."""
    result = probe(model, val)
    scores = {
        "VQA on val, percent": {k: round(100 * v.value, 1) for k, v in result.accuracy.items()},
        "bridge score": str(result.bridge),
        "questions": result.overall.count,
    }
    count = model.connector.settings["num_query_tokens"]
    frozen = {"vision_model": "shapes-clip", "language_model": "shapes-gpt2"}
    with atomic_dir(folder) as temporary:
        save_vlm(model, temporary, dtype=torch.float16, **frozen)
        _card(
            temporary,
            "shapes-vlm",
            f"the connector between shapes-clip and shapes-gpt2: a Q-Former of {count} queries, "
            "trained on captions, questions and instructions",
            {"steps": history.steps[-1], "seed": seed},
            history,
            scores,
            started,
        )


def build_llava(folder, *, seed=0):
    """Train notebook 04's mixed stage longer, as the study `llava_longer` does; write what was trained to `folder`."""
    started, profile = time.time(), PROFILES["tiny"]
    model, train, val = llava_parts(profile, seed)
    models, histories = train_llava(model, train, profile, seed)
    write_llava(folder, models["mixed"], histories["mixed"], val, started, seed)


def write_llava(folder, model, history, val, started, seed):
    """Write the trained parameters of a VLM of notebook 04, and its card, to `folder`."""
    scores = {name: str(each) for name, each in llava.evaluate(model, val).items()}
    scores["fixed prompts right"] = sum(row[-1] for row in ask_fixed(model, val))
    with atomic_dir(folder) as temporary:
        save_trained(model, temporary, dtype=torch.float16)
        _card(
            temporary,
            "shapes-llava",
            "the projector between shapes-clip and shapes-gpt2 and the change of the latter, trained in notebook 04's "
            "stage 1 and a longer mixed stage",
            {"stages": LONGER, "seed": seed},
            history,
            scores,
            started,
        )


BUILDERS = {
    "shapes-gpt2": build_gpt2,
    "shapes-clip": build_clip,
    "shapes-vlm": build_vlm,
    "shapes-llava": build_llava,
}


def build(name, **settings):
    """Make the checkpoint `name` again, in `data/zoo/name` of this clone. Raises UserError for an unknown name."""
    if name not in BUILDERS:
        raise UserError(f"no checkpoint is named {name!r}. There are: {', '.join(BUILDERS)}.")
    folder = Path(__file__).resolve().parent.parent / "data" / "zoo" / name
    BUILDERS[name](folder, **settings)
    return folder
