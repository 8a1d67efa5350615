"""`make bench`: how fast the parts of the course run on this machine, beside the matrix-product rate it can reach."""

import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlm_lite import recipes  # noqa: E402
from vlm_lite.data.language import short_prompt  # noqa: E402
from vlm_lite.data.records import read_vqa_rows  # noqa: E402
from vlm_lite.data.shapes import load_shapes, write_shapes  # noqa: E402
from vlm_lite.evals.captions import caption_scores, find_java  # noqa: E402
from vlm_lite.evals.retrieval import recall_at_k  # noqa: E402
from vlm_lite.evals.vqa import normalize_answer, score_vqa  # noqa: E402
from vlm_lite.files import data_path  # noqa: E402
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


def main():
    compute = get_compute()
    print(describe(get_profile("tiny"), compute), end="\n\n")
    time_evaluators()
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
    line("answering questions, batched", len(asked) / seconds(lambda: vlm.generate(shown, prompts), 2), "answers/s")


if __name__ == "__main__":
    main()
