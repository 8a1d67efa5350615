"""`make bench`: how fast the parts of the course run on this machine, beside what they are measured against.

    python tools/bench.py                   every part; docs/bench.json keeps the rows, docs/benchmarks.md shows them
    python tools/bench.py models machine    only these parts; those of the others stay as they are
    python tools/bench.py --quick           small sizes: shows that it runs, never how fast; nothing is kept

A part is kept as soon as it is done, so that a run which was cut is continued by naming the parts that are missing.
What is compared is timed in turn. Still, let the machine have nothing else to do: starved of cores, a ratio is noise.
"""

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import timm
import torch
import torch.nn.functional as F
from transformers import Blip2QFormerConfig, Blip2QFormerModel, CLIPModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import notebooks  # noqa: E402
from tools.timing import ROWS, in_turn, line, now, seconds  # noqa: E402
from vlm_lite.data.formats import image_tensor  # noqa: E402
from vlm_lite.data.records import read_vqa_rows  # noqa: E402
from vlm_lite.data.shapes import load_shapes, write_shapes  # noqa: E402
from vlm_lite.data.tokenizer import make_tokenizer  # noqa: E402
from vlm_lite.embed import pixel_values, tokenize  # noqa: E402
from vlm_lite.evals.captions import caption_scores, find_java  # noqa: E402
from vlm_lite.files import read_json, write_json  # noqa: E402
from vlm_lite.lessons import clip, smolvlm, vit  # noqa: E402
from vlm_lite.lessons.language import short_prompt  # noqa: E402
from vlm_lite.lessons.qformer import QFormer  # noqa: E402
from vlm_lite.lessons.retrieval import recall_at_k  # noqa: E402
from vlm_lite.lessons.vqa import normalize_answer, score_vqa  # noqa: E402
from vlm_lite.models.layout import from_blip2, save_clip  # noqa: E402
from vlm_lite.models.vlm import load_vlm  # noqa: E402
from vlm_lite.profiles import TINY, describe, get_compute, get_profile  # noqa: E402

IMAGES, ROUNDS, RECORD = 1024, 15, "docs/bench.json"
SMALL = 64  # images of the small form


def compare(name, ours, theirs, compute, rounds):
    """A line for each precision: the time of `ours()` as a share of that of `theirs()`, forward and backward.

    Both return a tensor; in fp32 these must agree, or the two do not do the same work.
    """
    torch.testing.assert_close(ours(), theirs(), atol=1e-4, rtol=1e-4)
    halves = {"bf16": [torch.bfloat16], "fp16": [torch.float16]}.get(compute.mixed_precision, [])
    for half in (None, *halves):

        def step(run, half=half):
            with torch.autocast(compute.device, half, enabled=half is not None):
                out = run()
            out.float().square().mean().backward()

        took = in_turn({"ours": lambda: step(ours), "theirs": lambda: step(theirs)}, rounds)
        precision = str(half or torch.float32).removeprefix("torch.")
        both = " and ".join(f"{1000 * each:,.0f}" for each in took.values())
        ratio = took["ours"] / took["theirs"]
        aim = 1.1 if half is None else None  # a CPU's bf16 attention is slow, and not ours to mend
        line(f"{name}, {precision}", ratio, "times", 2, at_most=aim, note=f"{both} ms")


def time_models(compute, quick=False):
    """The lessons' models beside the libraries', at equal weights and sizes: forward and backward."""
    torch.manual_seed(0)
    rounds, size = (1, 2) if quick else (ROUNDS, 8)
    name, sizes = "vit_small_patch16_224", dict(width=384, depth=12, num_heads=6, num_classes=1000)
    theirs = timm.create_model(name).to(compute.device).eval()
    ours = vit.ViT(image_size=224, **sizes).to(compute.device).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(size, 3, 224, 224, device=compute.device)
    label = f"{name}, batch {size}: 02's / timm's"
    compare(label, lambda: ours(pixels), lambda: theirs(pixels), compute, rounds)

    tokenizer, size = make_tokenizer(), 16 if quick else TINY.contrastive_batch_size
    table, _ = load_shapes("train", SMALL, progress=False)
    rows = [k % SMALL for k in range(size)]
    images = pixel_values(image_tensor(table)[0])[rows].to(compute.device)
    ids = tokenize([five[0] for five in table["captions"][:]], tokenizer)[rows].to(compute.device)
    mine = clip.make_clip(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        reference = CLIPModel.from_pretrained(save_clip(mine, folder), dtype=torch.float32)
    mine, reference = mine.to(compute.device), reference.to(compute.device).eval()

    def their_embeds():
        found = reference(pixel_values=images, input_ids=ids)
        return torch.cat([found.image_embeds, found.text_embeds])

    def my_embeds():
        return torch.cat([F.normalize(each, dim=-1) for each in mine(images, ids)[:2]])

    label = f"CLIP of Shapes, batch {size}: 01's / transformers'"
    compare(label, my_embeds, their_embeds, compute, rounds)

    for sizes in QFORMERS[: 2 - quick]:
        time_qformer(compute, rounds, *sizes)


def time_qformer(compute, rounds, label, batch, patches, count, width, depth, heads, seen, every):
    """Notebook 03's Q-Former beside transformers', with the same weights."""
    sizes = dict(num_query_tokens=count, width=width, num_layers=depth, num_heads=heads)
    sizes |= dict(mlp_width=4 * width, vision_width=seen, cross_attention_frequency=every)
    ours = QFormer(**sizes).to(compute.device).eval()
    config = Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        encoder_hidden_size=seen,
        cross_attention_frequency=every,
    )
    theirs = Blip2QFormerModel(config).to(compute.device).eval()
    ours.load_state_dict(from_blip2(theirs.state_dict()), strict=False)  # which has no queries
    queries = ours.query_tokens
    features = torch.randn(batch, patches, seen, device=compute.device)

    def their_queries():
        given = queries.expand(len(features), -1, -1)
        found = theirs(query_embeds=given, encoder_hidden_states=features)
        return found.last_hidden_state

    label = f"Q-Former of {label}, batch {batch}: 03's / transformers'"
    compare(label, lambda: ours(features), their_queries, compute, rounds)


QFORMERS = (  # name, batch, patches, queries, width, layers, heads, width of the patches, frequency of cross-attention
    ("Shapes", 64, 16, 8, 192, 3, 6, 128, 1),
    ("BLIP-2", 2, 196, 32, 768, 12, 12, 768, 2),
)


def time_answers(compute, quick=False):
    """From drawing the world to answers: images a second, and questions answered one by one and in batches."""
    count = SMALL if quick else IMAGES
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "shapes"
        drawn = seconds(lambda: write_shapes(target, "train", count, progress=False))
    line("drawing and writing the Shapes world", count / drawn, "images/s")
    line("   10,000 images at this rate", 10_000 * drawn / count, "s", at_most=30)
    captions, questions = load_shapes("train", count, progress=False)
    start = now()
    images, ids = image_tensor(captions)
    line("reading and decoding it", count / (now() - start), "images/s")

    vlm = load_vlm(TINY.vlm_model).to(compute.device)
    pixels = pixel_values(images[:256]).to(compute.device)
    encoded = len(pixels) / seconds(lambda: vlm.encode(pixels), 3)
    line("encoding images for the feature cache", encoded, "images/s")
    row = {image_id: k for k, image_id in enumerate(ids)}
    asked = list(questions.select(range(min(256, len(questions)))))
    prompts = [short_prompt(q["question"]) for q in asked]
    features = vlm.encode(pixel_values(images[[row[q["image_id"]] for q in asked]]))
    few = len(asked) // 8

    def one_by_one():
        return [vlm.generate(features[k : k + 1], prompts[k : k + 1]) for k in range(few)]

    calls = {"alone": one_by_one, "batched": lambda: vlm.generate(features, prompts)}
    took = in_turn(calls, 1 if quick else 3)
    alone, batched = few / took["alone"], len(asked) / took["batched"]
    line("answering questions, one by one", alone, "answers/s")
    line("answering questions, batched", batched, "answers/s")
    line("   of one by one", batched / alone, "times", 2, at_least=5)


def time_evaluators(compute, quick=False):
    """Recall on a set of the size of COCO's 5k, and VQA scoring of as many questions as val2014 has, files and all."""
    generator = torch.Generator().manual_seed(0)
    count = SMALL if quick else 5000
    pictures, texts = (torch.randn(n, 512, generator=generator) for n in (count, 5 * count))
    took = seconds(lambda: recall_at_k(pictures, texts, torch.arange(5 * count) // 5))
    line(f"Recall@K, {count:,} images x {5 * count:,} texts x 512", took, "s")
    draw, count = random.Random(0), SMALL if quick else 214_354
    words = [f"word{k}, the" for k in range(30_000)]
    asked, notes = [], []
    for k in range(count):  # every field of the real files, at their lengths
        ids = {"image_id": 458_752 + k // 5, "question_id": 458_752_000 + k}
        asked.append({**ids, "question": "What color is the sign behind the man?"})
        people = [draw.choice(words) if draw.random() < 0.3 else "yes" for _ in range(10)]
        answers = [
            {"answer": said, "answer_confidence": "maybe", "answer_id": place}
            for place, said in enumerate(people, 1)
        ]
        kinds = {"question_type": f"what is the {k % 65}", "answer_type": "other"}
        notes.append({**kinds, "multiple_choice_answer": "yes", "answers": answers, **ids})
    with tempfile.TemporaryDirectory() as folder:
        questions, annotations = Path(folder, "questions.json"), Path(folder, "annotations.json")
        questions.write_text(json.dumps({"questions": asked}))
        annotations.write_text(json.dumps({"annotations": notes}))
        size = (questions.stat().st_size + annotations.stat().st_size) / 1e6
        del asked, notes
        normalize_answer.cache_clear()
        gc.disable()  # as the command does
        line(
            f"VQA scoring of {count:,} questions, files as heavy as the real ones ({size:,.0f} MB) read",
            seconds(
                lambda: score_vqa(
                    ["yes"] * count, read_vqa_rows(questions, annotations, complete=False)[0]
                )
            ),
            "s",
            at_most=8,
        )
        gc.enable()
    count = SMALL if quick else 5_000
    references, said = (  # of some ten words, as COCO's
        {k: [" ".join(draw.choices(words, k=5)) for _ in range(many)] for k in range(count)}
        for many in (5, 1)
    )
    said, metrics = {k: one for k, (one,) in said.items()}, ("BLEU", "METEOR", "ROUGE_L", "CIDEr")
    find_java()  # which asks each Java for its version
    took = seconds(lambda: caption_scores(references, said, metrics))
    what = f"BLEU, METEOR, ROUGE-L and CIDEr of {count:,} images with the official tokeniser"
    line(what, took, "s", at_most=30)


def time_smolvlm(compute, quick=False):
    """SmolVLM2-256M's architecture with random weights: batches of one tile, and one image of many tiles."""
    model = smolvlm.random_smolvlm(layers=1 if quick else None)
    smolvlm.measure(model)  # the warm-up
    cases = (
        [(1, 1), (2, 1)] if quick else [*((n, 1) for n in (1, 2, 4, 8)), (1, 5), (1, 10), (1, 17)]
    )
    for images, tiles in cases:
        row = smolvlm.measure(model, images, tiles)
        details = (f"{row[name]:,.1f} {name}" for name in list(row)[4:])
        name = f"{images} x {tiles} tiles, {row['tokens read']:,} tokens read"
        line(name, row["seconds"], "s", note=", ".join(details))


def time_machine(compute, quick=False):
    """The matrix products that this machine can reach."""
    side = 256 if quick else 2048
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(side, side, device=compute.device, dtype=dtype)
        line(
            f"matrix product, {name}", 2 * side**3 / seconds(lambda a=a: a @ a, 4) / 1e9, "GFLOP/s"
        )


PARTS = {
    "models": ("the lessons' models against the libraries', forward and backward", time_models),
    "answers": ("from images to answers", time_answers),
    "evaluators": ("evaluators, at the size of the official sets", time_evaluators),
    "smolvlm": ("SmolVLM2-256M's architecture, 8 new tokens an image", time_smolvlm),
    "machine": ("this machine", time_machine),
}


def keep(name, compute, root, **taken):
    """Put the rows of a part into the record and into docs/benchmarks.md."""
    path = root / RECORD
    record = read_json(path) if path.exists() else {}
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record[name] = {
        "what": PARTS[name][0],
        "place": list(PARTS).index(name),
        "rows": list(ROWS),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "hardware": compute.hardware,
        **taken,
    }
    write_json(path, {part: record[part] for part in PARTS if part in record})
    notebooks.write_pages(root)


def main(arguments=None, root=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"only these of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, and nothing is kept")
    options = parser.parse_args(arguments)
    if set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(set(options.parts) - set(PARTS)))}")
    compute, root = get_compute(), root or (None if options.quick else ROOT)
    print(describe(get_profile("tiny"), compute))
    for name in options.parts or PARTS:
        what, time_it = PARTS[name]
        busy = psutil.cpu_percent(2.0)  # what others do: this program rests meanwhile
        warning = "   (the machine is busy: no time or ratio is worth keeping)" * (busy > 10)
        print(f"\n{what}{warning}", flush=True)
        ROWS.clear()
        spent = round(seconds(lambda time_it=time_it: time_it(compute, quick=options.quick)))
        print(f"({spent} s)", flush=True)
        if root is not None:
            taken = {"seconds": spent, "busy_percent": busy, "quick": options.quick}
            keep(name, compute, root, **taken)


if __name__ == "__main__":
    main()
