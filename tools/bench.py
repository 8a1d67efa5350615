"""`make bench`: how fast the parts of the course run on this machine, beside what they are measured against.

    python tools/bench.py                 every part; docs/bench.json keeps the rows, and the README's table shows them
    python tools/bench.py race towers     only these parts; those of the others stay as they are
    python tools/bench.py --quick         small sizes: shows that it runs, never how fast; nothing is kept

A part is kept as soon as it is done, so that a run which was cut is gone on with by naming the parts that are missing.
What is compared is timed in turn. Still, let the machine have nothing else to do: starved of cores, a ratio is noise.
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import notebooks  # noqa: E402
from tools.bench_clip import attention_in_fp32, time_race, time_remedies, time_towers  # noqa: E402
from tools.timing import ROWS, half_precision, in_turn, line, now, seconds  # noqa: E402
from vlm_lite import recipes, stages  # noqa: E402
from vlm_lite.data.language import short_prompt  # noqa: E402
from vlm_lite.data.records import read_vqa_rows  # noqa: E402
from vlm_lite.data.shapes import load_shapes, write_shapes  # noqa: E402
from vlm_lite.evals.captions import caption_scores, find_java  # noqa: E402
from vlm_lite.evals.retrieval import recall_at_k  # noqa: E402
from vlm_lite.evals.vqa import normalize_answer, score_vqa  # noqa: E402
from vlm_lite.files import UserError, data_path, read_json, write_json  # noqa: E402
from vlm_lite.models.qformer import QFormer  # noqa: E402
from vlm_lite.models.text import build_text_batch  # noqa: E402
from vlm_lite.models.vlm import VLM  # noqa: E402
from vlm_lite.optim import MuonAdamW  # noqa: E402
from vlm_lite.profiles import TINY, describe, get_compute, get_profile  # noqa: E402
from vlm_lite.train import step_seed, weight_decay_groups  # noqa: E402

IMAGES, STEPS, ROUNDS, RECORD = 1024, 24, 15, "docs/bench.json"
SMALL = 64  # pictures of the small form


def milliseconds_a_step(history):
    """From a History logged at every step, its first third left out."""
    warm = len(history.seconds) // 3
    return (
        1000
        * (history.seconds[-1] - history.seconds[warm])
        / (history.steps[-1] - history.steps[warm])
    )


def time_evaluators(compute, quick=False):
    """Recall on a set of the size of COCO's 5k, and VQA scoring of as many questions as val2014 has, files and all."""
    generator = torch.Generator().manual_seed(0)
    count = SMALL if quick else 5000
    pictures, texts = (torch.randn(n, 512, generator=generator) for n in (count, 5 * count))
    line(
        f"Recall@K, {count:,} images x {5 * count:,} texts x 512",
        seconds(lambda: recall_at_k(pictures, texts, torch.arange(5 * count) // 5)),
        "s",
    )
    draw, count = random.Random(0), SMALL if quick else 214_000
    words = [f"word{k}, the" for k in range(30_000)]
    ids = [{"question_id": k, "image_id": k} for k in range(count)]
    notes = [
        {
            **row,
            "answers": [
                {"answer": draw.choice(words) if draw.random() < 0.3 else "yes"} for _ in range(10)
            ],
        }
        for row in ids
    ]
    with tempfile.TemporaryDirectory() as folder:
        questions, annotations = Path(folder, "questions.json"), Path(folder, "annotations.json")
        questions.write_text(
            json.dumps({"questions": [{**row, "question": "what is it?"} for row in ids]})
        )
        annotations.write_text(json.dumps({"annotations": notes}))
        del ids, notes
        normalize_answer.cache_clear()
        gc.disable()  # as the command does
        line(
            f"VQA scoring of {count:,} questions, reading the files included",
            seconds(
                lambda: score_vqa(
                    ["yes"] * count, read_vqa_rows(questions, annotations, complete=False)[0]
                )
            ),
            "s",
        )
        gc.enable()
    count, starts, start_of = SMALL if quick else 5_000, [], subprocess.Popen.__init__

    def counted(self, *arguments, **options):
        starts.append(arguments)
        start_of(self, *arguments, **options)

    references = {
        k: [f"a red circle near the blue square number {k % 97}"] * 5 for k in range(count)
    }
    find_java()  # which asks each Java for its version
    subprocess.Popen.__init__ = counted
    line(
        f"BLEU, ROUGE-L and CIDEr of {count:,} images with the official tokeniser",
        seconds(
            lambda: caption_scores(
                references, {k: "a red circle" for k in references}, ("BLEU", "ROUGE_L", "CIDEr")
            )
        ),
        "s",
    )
    subprocess.Popen.__init__ = start_of
    line("  programs (Java) started by that call", len(starts), "")


REMEDIES = (
    "cached features",
    "rows as long as their batch",
    "head on answers only",
    "frozen weights halved",
    "a picture's questions in one row",
    "the shorter rows read apart",
)


def time_stages(compute, quick=False, steps=8):
    """Pictures a second of notebook 04's stages: the plain loop and ours, the ceiling, and what each remedy does alone.

    The plain loop has a row for each exchange, encodes its pictures at every step, pads to the longest row of the set,
    reads every row to that end, runs the head on all positions and casts frozen weights anew. The ceiling is the
    language model's own step on our rows: forward, backward and update, with a prefix of zeros and the batch made
    beforehand. Each remedy alone is timed in the third stage, the only one where a picture has several exchanges.
    """
    steps, count = (1, SMALL) if quick else (steps, IMAGES)
    vlm, half = recipes.new_vlm("mlp").to(compute.device), half_precision(compute) or torch.float32
    captions, questions = load_shapes("train", count, progress=False)
    images, _, ids = recipes.load_pictures(captions)
    features = recipes.picture_features(vlm.vision, images, progress=False)
    texts = stages.stage_texts(stages.Pictures(features, ids, captions, questions))
    total = dict.fromkeys(("plain", "ours", "ceiling"), 0.0)
    for stage in stages.llava_plan(TINY.stage_steps, 4 if quick else TINY.stage_batch_size):
        stages.set_trainable(vlm, stage.tune)
        alone = REMEDIES if stage.data == "vqa" else ()
        plans = {"plain": (), "ours": REMEDIES, **{name: (name,) for name in alone}}
        took = time_stage(vlm, images, features, texts[stage.data], stage, plans, half, steps)
        line(
            f"stage {stage.name}, {stage.batch_size} pictures a step: the plain loop",
            stage.batch_size / took["plain"],
            "pictures/s",
        )
        for remedy in alone:
            line(f"   {remedy}, alone", took["plain"] / took[remedy], "times", 2)
        line("   ours", took["plain"] / took["ours"], "times", 2)
        line(
            "   of the ceiling, the language model's own step",
            100 * took["ceiling"] / took["ours"],
            "%",
            at_least=90,
        )
        total = {name: seconds + stage.steps * took[name] for name, seconds in total.items()}
    line(
        "all three, by the steps of notebook 04: ours",
        total["plain"] / total["ours"],
        "times",
        2,
        at_least=1.5,
    )
    line("   the ceiling's own", total["plain"] / total["ceiling"], "times", 2)


def time_stage(vlm, images, features, texts, stage, plans, half, steps):
    """{name: the median of a step's seconds} of `plans` {name: the remedies that are taken} and of the "ceiling"."""
    rows = torch.arange(len(images))  # in the place of features
    batches = recipes.exchange_batches(rows, texts, vlm.tokenizer, stage.batch_size, stage.per_row)
    lengths = [
        sorted(
            build_text_batch(
                vlm.tokenizer, [[one] if isinstance(one[0], str) else one for one in said]
            )["attention_mask"]
            .sum(1)
            .tolist()
        )
        for said in texts
        if said
    ]
    longest = {
        True: max(sum(row[-stage.per_row :]) for row in lengths),
        False: max(row[-1] for row in lengths),
    }
    learned = [p for p in vlm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)

    def apart(rows, tokens, mask, labels):
        """A row for each exchange."""
        found = [
            (row, tokens[i, mask[i] == n], labels[i, mask[i] == n])
            for i, row in enumerate(rows)
            for n in range(1, 1 + int(mask[i].max()))
        ]
        rows, tokens, labels = zip(*found, strict=True)
        tokens, mask, labels = (
            torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)
            for parts, value in ((tokens, 0), ([*map(torch.ones_like, tokens)], 0), (labels, -100))
        )
        return torch.stack(rows), tokens, mask, labels

    def make(step, chosen):
        batch = batches(step, torch.Generator().manual_seed(step))
        return batch if REMEDIES[4] in chosen else apart(*batch)

    def one(step, chosen, batch=None, update=True):
        rows, tokens, mask, labels = batch or make(step, chosen)
        more = (
            0,
            0
            if REMEDIES[1] in chosen
            else max(0, longest[REMEDIES[4] in chosen] - tokens.shape[1]),
        )
        tokens, mask, labels = (
            F.pad(part, more, value=value).to(vlm.device)
            for part, value in ((tokens, 0), (mask, 0), (labels, -100))
        )
        shown = (
            features[rows]
            if REMEDIES[0] in chosen
            else vlm.encode(recipes.pixel_values(images[rows]))
        )
        if REMEDIES[2] in chosen:
            loss = vlm(shown, tokens, mask, labels).loss
        else:
            embeds, seen, places, front = vlm._inputs(shown, tokens, mask)
            logits = vlm.language_model.get_output_embeddings()(
                vlm._read(embeds, seen, places, mask)
            )
            loss = vlm.language_model.loss_function(
                logits, F.pad(labels, (front, 0), value=-100), vocab_size=logits.shape[-1]
            )
        loss.backward()
        if update:
            optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def run(step, chosen, batch=None, update=True):
        halved = (
            stages.halved(vlm.language_model, half)
            if REMEDIES[3] in chosen
            else contextlib.nullcontext()
        )
        vlm._read = lambda *given: VLM._read(vlm, *given[: 3 + (REMEDIES[5] in chosen)])
        vlm.train()
        with halved, torch.autocast(vlm.device.type, half, enabled=half is not torch.float32):
            start = now()
            return one(step, chosen, batch, update), now() - start

    def ceiling(step):
        vlm.prefix = lambda shown: torch.zeros(
            *shown.shape[:2],
            vlm.embed.embedding_dim,
            device=vlm.device,
            dtype=vlm.embed.weight.dtype,
            requires_grad=True,
        )
        try:
            return run(step, REMEDIES, make(step, REMEDIES))[1]
        finally:
            del vlm.prefix

    losses = [run(0, chosen, update=False)[0] for chosen in plans.values()]
    if max(losses) - min(losses) > 0.02 * max(losses):
        raise AssertionError(
            f"the plans of stage {stage.name} do not do the same work: their losses are {losses}"
        )

    def taken(call):
        """As in a loop of its own: after a like step, with its memory at hand and on shapes that have been met."""
        call()
        return call()

    times = [
        {
            **{
                name: taken(lambda step=step, chosen=chosen: run(step, chosen)[1])
                for name, chosen in plans.items()
            },
            "ceiling": taken(lambda step=step: ceiling(step)),
        }
        for step in range(steps)
    ]  # in turn, on the same rows, so that all meet the same machine
    return {name: statistics.median(row[name] for row in times) for name in times[0]}


def time_qformer(compute, quick=False, rounds=ROUNDS):
    """A Q-Former's forward and backward beside `Blip2QFormerModel`'s, at equal size and settings: the ratio of medians.

    Both by `scaled_dot_product_attention`, on a CPU in fp32 as ours has it (see `attention_in_fp32`); without dropout,
    in fp32 and in the precision of the device.
    """
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    large = dict(
        num_query_tokens=32,
        width=768,
        num_layers=12,
        num_heads=12,
        mlp_width=3072,
        cross_attention_frequency=2,
    )
    small_batch = 64 if compute.device == "cuda" else 2
    rounds = (
        1 if quick else rounds
    )  # of the large size; a small one is soon done, and its ratio is near 1
    sizes = (
        ("Shapes", recipes.SHAPES_QFORMER, 64, 16, 128),
        ("BLIP-2", large, small_batch, 196, 768),
    )
    for name, settings, batch, patches, vision_width in sizes[:1] if quick else sizes:
        ours = QFormer(vision_width=vision_width, **settings).to(compute.device).train()
        theirs = (
            Blip2QFormerModel(
                Blip2QFormerConfig(
                    hidden_size=settings["width"],
                    num_hidden_layers=settings["num_layers"],
                    num_attention_heads=settings["num_heads"],
                    intermediate_size=settings["mlp_width"],
                    encoder_hidden_size=vision_width,
                    cross_attention_frequency=settings["cross_attention_frequency"],
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                    attn_implementation="sdpa",
                )
            )
            .to(compute.device)
            .train()
        )
        queries = torch.nn.Parameter(torch.randn_like(ours.query_tokens))
        shown = torch.randn(batch, patches, vision_width, device=compute.device)
        passes = {
            "ours": lambda ours=ours, shown=shown: ours(shown),
            "theirs": lambda theirs=theirs, shown=shown, queries=queries: (
                theirs(
                    query_embeds=queries.expand(len(shown), -1, -1), encoder_hidden_states=shown
                ).last_hidden_state
            ),
        }
        half = half_precision(compute)
        for dtype in (torch.float32, half) if half else (torch.float32,):

            def step(run, dtype=dtype):
                with (
                    torch.autocast(compute.device, dtype, enabled=dtype is not torch.float32),
                    attention_in_fp32(),
                ):
                    out = run()
                out.float().square().mean().backward()

            took = in_turn(
                {key: lambda run=run: step(run) for key, run in passes.items()},
                rounds if name == "BLIP-2" else 3 * rounds,
            )
            label = f"Q-Former of {name}, batch {batch}, {str(dtype).removeprefix('torch.')}"
            line(f"{label}: forward and backward", 1000 * took["ours"], "ms")
            line(
                "   of Blip2QFormerModel's time at equal settings",
                took["ours"] / took["theirs"],
                "times",
                2,
                at_most=1.0,
            )


def time_connector(compute, quick=False, steps=2 * STEPS):
    """A training step of the Q-Former on cached features beside the frozen language model's own step on the same rows.

    The first half of the steps is left out: a CPU plans its products at the first meeting with a shape.
    The ceiling is that model's forward and backward, with a prefix of zeros, and nothing else: no batch to make, no
    nerve, no optimiser.
    """
    steps = 3 if quick else steps
    vlm = recipes.new_vlm("qformer", num_query_tokens=TINY.num_query_tokens)
    captions, questions = load_shapes("train", SMALL if quick else IMAGES, progress=False)
    images, _, ids = recipes.load_pictures(captions)
    features = recipes.picture_features(vlm.vision, images, progress=False)
    said = recipes.picture_exchanges(captions, questions)
    exchanges, size = (
        [said[image_id] for image_id in ids],
        4 if quick else TINY.stage_batch_size,
    )
    batches = recipes.exchange_batches(features, exchanges, vlm.tokenizer, size)
    half = half_precision(compute)
    alone, whole, prefix, ended = [], [], vlm.prefix, [now()]

    def ceiling(done, model):
        whole.append(now() - ended.pop())
        _, *text = batches(done - 1, torch.Generator().manual_seed(step_seed(0, done - 1, "batch")))
        zeros = torch.zeros(
            size,
            TINY.num_query_tokens,
            vlm.embed.embedding_dim,
            device=vlm.device,
            dtype=vlm.embed.weight.dtype,
            requires_grad=True,
        )
        text = [part.to(vlm.device) for part in text]
        vlm.prefix = lambda shown: zeros
        with torch.autocast(compute.device, half or torch.float32, enabled=half is not None):
            alone.append(seconds(lambda: vlm(features[:size], *text).loss.backward()))
        vlm.prefix = prefix
        ended.append(now())

    recipes.train_connector(
        vlm,
        features,
        exchanges,
        steps=steps,
        batch_size=size,
        compute=compute,
        progress=False,
        on_step=ceiling,
    )
    own, model = (statistics.median(taken[steps // 2 :]) for taken in (whole, alone))
    vlm.train()
    batch = batches(0, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as every:
        vlm(*batch).loss.backward()
        MuonAdamW(weight_decay_groups(vlm, 0.0), lr=1e-2).step()
    vlm.prefix = lambda shown: torch.zeros(
        size, TINY.num_query_tokens, vlm.embed.embedding_dim, requires_grad=True
    )
    with FlopCounterMode(display=False) as models_own:
        vlm(*batch).loss.backward()
    share = models_own.get_total_flops() / every.get_total_flops()
    line(f"connector training step, batch {size}", 1000 * own, "ms")
    line(
        "   of the ceiling, the language model's forward and backward",
        100 * model / own,
        "%",
        at_least=90,
    )
    line(
        "   the language model's share of the arithmetic; the rest is the nerve's and Muon's",
        100 * share,
        "%",
    )
    line("   of what this share allows", 100 * model / own / share, "%", at_least=90)


def time_answers(compute, quick=False):
    """Questions answered one by one and in batches, and what comes before: drawing, reading, encoding, training."""
    count, steps = (SMALL, 3) if quick else (IMAGES, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        drawn = seconds(
            lambda: write_shapes(Path(folder) / "shapes", "train", count, progress=False)
        )
    line("drawing and writing the Shapes world", count / drawn, "pictures/s")
    line("   10,000 pictures at this rate", 10_000 * drawn / count, "s", at_most=30)
    captions, questions = load_shapes("train", count, progress=False)
    start = now()
    images, texts, ids = recipes.load_pictures(captions)
    line("reading and decoding it", count / (now() - start), "pictures/s")

    vlm, size = (
        VLM.from_pretrained(data_path("zoo", TINY.vlm_model)),
        16 if quick else TINY.clip_batch_size,
    )
    history = recipes.train_clip(
        recipes.make_shapes_clip(vlm.tokenizer),
        images,
        texts,
        vlm.tokenizer,
        steps=steps,
        batch_size=size,
        compute=compute,
        log_every=1,
        progress=False,
    )
    line(f"CLIP training step, batch {size}", milliseconds_a_step(history), "ms")

    vlm.to(compute.device)
    pixels = recipes.pixel_values(images[:256]).to(compute.device)
    line(
        "encoding pictures for the feature cache",
        len(pixels) / seconds(lambda: vlm.encode(pixels), 3),
        "pictures/s",
    )
    features = (
        torch.cat([vlm.encode(recipes.pixel_values(part)) for part in images.split(256)])
        .half()
        .cpu()
    )

    row = {image_id: k for k, image_id in enumerate(ids)}
    asked = list(
        questions.select_columns(["image_id", "question"]).select(range(min(256, len(questions))))
    )
    shown, prompts = (
        features[[row[q["image_id"]] for q in asked]],
        [short_prompt(q["question"]) for q in asked],
    )
    few = len(asked) // 8
    took = in_turn(
        {
            "alone": lambda: [
                vlm.generate(shown[k : k + 1], prompts[k : k + 1]) for k in range(few)
            ],
            "batched": lambda: vlm.generate(shown, prompts),
        },
        1 if quick else 3,
    )
    alone, batched = few / took["alone"], len(asked) / took["batched"]
    line("answering questions, one by one", alone, "answers/s")
    line("answering questions, batched", batched, "answers/s")
    line("   of one by one", batched / alone, "times", 2, at_least=5)


def time_machine(compute, quick=False):
    """The matrix products that this machine can reach, and the start of a command."""
    starts = seconds(
        lambda: subprocess.run([sys.executable, "-c", "import vlm_lite"], check=True, cwd=ROOT), 3
    )
    line("import vlm_lite, the interpreter's start included", 1000 * starts, "ms")
    side = 256 if quick else 2048
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(side, side, device=compute.device, dtype=dtype)
        line(
            f"matrix product, {name}", 2 * side**3 / seconds(lambda a=a: a @ a, 4) / 1e9, "GFLOP/s"
        )


PARTS = {
    "race": ("CLIP to R@5 0.90, against the recipe people start from", time_race),
    "remedies": ("what each of the differences is worth alone", time_remedies),
    "towers": ("our towers, forward and backward, against timm's and transformers'", time_towers),
    "qformer": ("our Q-Former against Blip2QFormerModel", time_qformer),
    "connector": ("the connector's training on cached features", time_connector),
    "stages": ("training in stages, against the plain loop", time_stages),
    "answers": ("from pictures to answers", time_answers),
    "evaluators": ("evaluators, at the size of the official sets", time_evaluators),
    "machine": ("this machine", time_machine),
}


def keep(name, rows, taken, compute, quick, root):
    """Put the rows of a part into the record and the README's table."""
    path = root / RECORD
    try:
        record = read_json(path)
    except UserError:
        record = {}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    record[name] = {
        "what": PARTS[name][0],
        "place": list(PARTS).index(name),
        "rows": rows,
        "quick": quick,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "hardware": f"{compute.device}, {os.cpu_count()} cores, {platform.machine()}, {compute.mixed_precision}",
        **taken,
    }
    write_json(path, {part: record[part] for part in PARTS if part in record})
    notebooks.write_if_changed(root / "README.md", notebooks.readme(root))


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
        warning = (
            "   (the machine is busy with something else: no time or ratio is worth keeping)"
            if busy > 10
            else ""
        )
        print(f"\n{what}{warning}", flush=True)
        ROWS.clear()
        spent = seconds(lambda time_it=time_it: time_it(compute, quick=options.quick))
        print(f"({spent:.0f} s)", flush=True)
        if root is not None:
            keep(
                name,
                list(ROWS),
                {"seconds": round(spent), "busy_percent": busy},
                compute,
                options.quick,
                root,
            )


if __name__ == "__main__":
    main()
