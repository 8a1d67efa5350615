"""`make bench`: how fast the parts of the course run on this machine, beside the matrix-product rate it can reach."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from vlm_lite.data.formats import image_tensor  # noqa: E402
from vlm_lite.data.language import CAPTION_PROMPT, short_prompt  # noqa: E402
from vlm_lite.data.shapes import load_shapes, write_shapes  # noqa: E402
from vlm_lite.files import data_path  # noqa: E402
from vlm_lite.models.clip import CLIP, info_nce  # noqa: E402
from vlm_lite.models.text import build_text_batch  # noqa: E402
from vlm_lite.models.vlm import VLM  # noqa: E402
from vlm_lite.profiles import TINY, describe, get_compute  # noqa: E402
from vlm_lite.train import train  # noqa: E402

IMAGES, STEPS = 1024, 20


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
    print(f"{name:50} {value:10,.1f} {unit}", flush=True)


def step_seconds(model, batch, loss_fn, compute):
    """Seconds of a training step in the middle of a run of the course's own loop."""
    history = train(model, lambda step, generator: batch, loss_fn, steps=STEPS, lr=1e-5, compute=compute, log_every=1,
                    progress=False)
    taken = history.seconds
    return (taken[-1] - taken[STEPS // 4 - 1]) / (STEPS - STEPS // 4)


def main():
    compute = get_compute()
    print(describe(TINY, compute), end="\n\n")
    starts = seconds(lambda: subprocess.run([sys.executable, "-c", "import vlm_lite"], check=True), 3)
    line("import vlm_lite, the interpreter's start included", 1000 * starts, "ms")
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(2048, 2048, device=compute.device, dtype=dtype)
        line(f"matrix product, {name}", 2 * 2048**3 / seconds(lambda a=a: a @ a, 4) / 1e9, "GFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        drawn = seconds(lambda: write_shapes(Path(folder) / "shapes", "train", IMAGES, progress=False))
    line("drawing and writing the Shapes world", IMAGES / drawn, "pictures/s")

    captions, questions = load_shapes("val", IMAGES, progress=False)
    start = time.perf_counter()
    images, ids = image_tensor(captions)
    line("reading it back", len(images) / (time.perf_counter() - start), "pictures/s")
    pixels = images[:TINY.clip_batch_size].float().div(127.5).sub(1)

    vlm = VLM.from_pretrained(data_path("zoo", TINY.vlm_model)).to(compute.device)
    clip = CLIP.from_pretrained(data_path("zoo", TINY.vision_model))
    text = vlm.tokenizer([row[0] for row in captions["captions"][:TINY.clip_batch_size]], padding=True,
                         return_tensors="pt")
    batch = {"pixel_values": pixels, "input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}

    def clip_loss(model, batch):
        return info_nce(model.encode_image(batch["pixel_values"]),
                        model.encode_text(batch["input_ids"], batch["attention_mask"]), model.logit_scale)

    line(f"CLIP training step, batch {len(pixels)}", 1000 * step_seconds(clip, batch, clip_loss, compute), "ms")
    line("encoding for the feature cache", len(pixels) / seconds(lambda: vlm.encode(pixels.to(compute.device)), 4),
         "pictures/s")

    features = vlm.encode(pixels.to(compute.device)).float().cpu()
    rows = [[(CAPTION_PROMPT, row[0])] for row in captions["captions"][:len(features)]]
    batch = {"features": features, **build_text_batch(vlm.tokenizer, rows)}
    line(f"connector training step, batch {len(features)}",
         1000 * step_seconds(vlm, batch, lambda model, batch: model(**batch).loss, compute), "ms")

    place = {image_id: row for row, image_id in enumerate(ids)}
    asked = list(questions.select(range(256)))
    shown = vlm.encode(images[[place[row["image_id"]] for row in asked]].float().div(127.5).sub(1).to(compute.device))
    prompts = [short_prompt(row["question"]) for row in asked]
    line("answering questions, batched", len(asked) / seconds(lambda: vlm.generate(shown, prompts), 2), "answers/s")


if __name__ == "__main__":
    main()
