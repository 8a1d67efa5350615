"""`make bench`: how fast the parts of the course run on this machine, beside the matrix-product rate it can reach."""

import contextlib
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlm_lite import recipes, stages  # noqa: E402
from vlm_lite.data.language import short_prompt  # noqa: E402
from vlm_lite.data.records import read_vqa_rows  # noqa: E402
from vlm_lite.data.shapes import load_shapes, write_shapes  # noqa: E402
from vlm_lite.evals.captions import caption_scores, find_java  # noqa: E402
from vlm_lite.evals.retrieval import recall_at_k  # noqa: E402
from vlm_lite.evals.vqa import normalize_answer, score_vqa  # noqa: E402
from vlm_lite.files import data_path  # noqa: E402
from vlm_lite.models.text import build_text_batch  # noqa: E402
from vlm_lite.models.vlm import VLM  # noqa: E402
from vlm_lite.profiles import TINY, describe, get_compute, get_profile  # noqa: E402

IMAGES, STEPS = 1024, 24


def seconds(call, repeats=1):
    """The shortest of `repeats` timings of `call()`, after one call that is not timed when there are several."""
    if repeats > 1:
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def line(name, value, unit):
    print(f"{name:62} {value:10,.1f} {unit}", flush=True)


def milliseconds_a_step(history):
    """From a History logged at every step, its first third left out."""
    warm = len(history.seconds) // 3
    return 1000 * (history.seconds[-1] - history.seconds[warm]) / (history.steps[-1] - history.steps[warm])


def time_evaluators():
    """Recall on a set of the size of COCO's 5k, and VQA scoring of as many questions as val2014 has, files and all."""
    generator = torch.Generator().manual_seed(0)
    pictures, texts = (torch.randn(n, 512, generator=generator) for n in (5000, 25000))
    line("Recall@K, 5,000 images x 25,000 texts x 512", seconds(lambda: recall_at_k(
        pictures, texts, torch.arange(25000) // 5)), "s")
    draw, count = random.Random(0), 214_000
    words = [f"word{k}, the" for k in range(30_000)]
    ids = [{"question_id": k, "image_id": k} for k in range(count)]
    notes = [{**row, "answers": [{"answer": draw.choice(words) if draw.random() < 0.3 else "yes"} for _ in range(10)]}
             for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        questions, annotations = Path(folder, "questions.json"), Path(folder, "annotations.json")
        questions.write_text(json.dumps({"questions": [{**row, "question": "what is it?"} for row in ids]}))
        annotations.write_text(json.dumps({"annotations": notes}))
        del ids, notes
        normalize_answer.cache_clear()
        gc.disable()  # as the command does
        line("VQA scoring of 214,000 questions, reading the files included", seconds(lambda: score_vqa(
            ["yes"] * count, read_vqa_rows(questions, annotations, complete=False)[0])), "s")
        gc.enable()
    count, starts, start_of = 5_000, [], subprocess.Popen.__init__

    def counted(self, *arguments, **options):
        starts.append(arguments)
        start_of(self, *arguments, **options)

    references = {k: [f"a red circle near the blue square number {k % 97}"] * 5 for k in range(count)}
    find_java()  # which asks each Java for its version
    subprocess.Popen.__init__ = counted
    line("BLEU, ROUGE-L and CIDEr of 5,000 images with the official tokeniser", seconds(lambda: caption_scores(
        references, {k: "a red circle" for k in references}, ("BLEU", "ROUGE_L", "CIDEr"))), "s")
    subprocess.Popen.__init__ = start_of
    line("  programs (Java) started by that call", len(starts), "")


def time_stages(compute, steps=6):
    """Pictures a second of notebook 04's second stage: the plain loop, each remedy alone, all, and the ceiling.

    The plain loop encodes its pictures at every step, pads to the longest row of the set, runs the head on all
    positions and casts frozen weights anew. The ceiling is the language model's own step on the same rows.
    """
    vlm = recipes.new_vlm("mlp").to(compute.device)
    stages.set_trainable(vlm, "lora")
    captions, questions = load_shapes("train", IMAGES, progress=False)
    images, _, ids = recipes.load_pictures(captions)
    features = recipes.picture_features(vlm.vision, images, progress=False)
    texts = stages.stage_texts(stages.Pictures(features, ids, captions, questions))["instructions"]
    batches = recipes.exchange_batches(torch.arange(IMAGES), texts, vlm.tokenizer, 32, 1)  # rows in place of features
    longest = max(build_text_batch(vlm.tokenizer, [talk])["input_ids"].shape[1] for (talk,) in texts[:256])
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute.mixed_precision, torch.float32)
    remedies = ("cached features", "rows as long as their batch", "head on answers only", "frozen weights halved")
    learned = [p for p in vlm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)

    def one(step, chosen):
        rows, tokens, mask, labels = batches(step, torch.Generator().manual_seed(step))
        more = (0, 0 if remedies[1] in chosen else longest - tokens.shape[1])
        tokens, mask, labels = (F.pad(part, more, value=value).to(compute.device) for part, value in
                                ((tokens, 0), (mask, 0), (labels, -100)))
        shown = features[rows] if remedies[0] in chosen else vlm.encode(recipes.pixel_values(images[rows]))
        if remedies[2] in chosen:
            loss = vlm(shown, tokens, mask, labels).loss
        else:
            prefix = vlm.prefix(shown)
            front = (prefix.shape[1], 0)
            loss = vlm.language_model(inputs_embeds=torch.cat([prefix, vlm.embed(tokens)], 1), use_cache=False,
                                      attention_mask=F.pad(mask, front, value=1),
                                      labels=F.pad(labels, front, value=-100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def run(chosen):
        halved = stages.halved(vlm.language_model, half) if remedies[3] in chosen else contextlib.nullcontext()
        with halved, torch.autocast(compute.device, half, enabled=half is not torch.float32):
            vlm.train()
            one(0, chosen), one(1, chosen)
            start = time.perf_counter()
            for step in range(2, steps + 2):
                one(step, chosen)
            return 32 * steps / (time.perf_counter() - start)

    plain = run(())
    line("stage 2, plain loop", plain, "pictures/s")
    for remedy in remedies:
        line(f"   {remedy}, alone", run((remedy,)) / plain, "times")
    best = run(remedies)
    line("   all four", best / plain, "times")
    vlm.prefix = lambda shown: torch.zeros(*shown.shape[:2], vlm.embed.embedding_dim, device=vlm.device,
                                           dtype=vlm.embed.weight.dtype, requires_grad=True)
    line("   of the ceiling, the language model's own step", 100 * best / run(remedies), "%")


def main():
    compute = get_compute()
    print(describe(get_profile("tiny"), compute), end="\n\n")
    time_evaluators()
    time_stages(compute)
    starts = seconds(lambda: subprocess.run([sys.executable, "-c", "import vlm_lite"], check=True, cwd=ROOT), 3)
    line("import vlm_lite, the interpreter's start included", 1000 * starts, "ms")
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(2048, 2048, device=compute.device, dtype=dtype)
        line(f"matrix product, {name}", 2 * 2048**3 / seconds(lambda a=a: a @ a, 4) / 1e9, "GFLOP/s")

    with tempfile.TemporaryDirectory() as folder:
        drawn = seconds(lambda: write_shapes(Path(folder) / "shapes", "train", IMAGES, progress=False))
    line("drawing and writing the Shapes world", IMAGES / drawn, "pictures/s")
    captions, questions = load_shapes("train", IMAGES, progress=False)
    start = time.perf_counter()
    images, texts, ids = recipes.load_pictures(captions)
    line("reading and decoding it", IMAGES / (time.perf_counter() - start), "pictures/s")

    vlm = VLM.from_pretrained(data_path("zoo", TINY.vlm_model))
    options = {"steps": STEPS, "compute": compute, "log_every": 1, "progress": False}
    history = recipes.train_clip(recipes.make_shapes_clip(vlm.tokenizer), images, texts, vlm.tokenizer,
                                 batch_size=TINY.clip_batch_size, **options)
    line(f"CLIP training step, batch {TINY.clip_batch_size}", milliseconds_a_step(history), "ms")

    vlm.to(compute.device)
    pixels = recipes.pixel_values(images[:256]).to(compute.device)
    line("encoding pictures for the feature cache", len(pixels) / seconds(lambda: vlm.encode(pixels), 3), "pictures/s")
    features = torch.cat([vlm.encode(recipes.pixel_values(part)) for part in images.split(256)]).half().cpu()
    said = recipes.picture_exchanges(captions, questions)
    history = recipes.train_connector(vlm, features, [said[image_id] for image_id in ids],
                                      batch_size=TINY.connector_batch_size, **options)
    line(f"connector training step, batch {TINY.connector_batch_size}", milliseconds_a_step(history), "ms")

    row = {image_id: k for k, image_id in enumerate(ids)}
    asked = list(questions.select_columns(["image_id", "question"]).select(range(min(256, len(questions)))))
    shown, prompts = features[[row[q["image_id"]] for q in asked]], [short_prompt(q["question"]) for q in asked]
    alone = seconds(lambda: [vlm.generate(shown[k:k + 1], prompts[k:k + 1]) for k in range(32)])
    line("answering questions, one by one", 32 / alone, "answers/s")
    line("answering questions, batched", len(asked) / seconds(lambda: vlm.generate(shown, prompts), 2), "answers/s")


if __name__ == "__main__":
    main()
