"""`make bench`: how fast the parts of the course run on this machine, beside the matrix-product rate it can reach."""

import contextlib
import gc
import json
import random
import resource
import statistics
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
from vlm_lite.data.language import make_tokenizer, short_prompt  # noqa: E402
from vlm_lite.data.records import read_vqa_rows  # noqa: E402
from vlm_lite.data.shapes import load_shapes, write_shapes  # noqa: E402
from vlm_lite.evals.captions import caption_scores, find_java  # noqa: E402
from vlm_lite.evals.retrieval import recall_at_k  # noqa: E402
from vlm_lite.evals.vqa import normalize_answer, score_vqa  # noqa: E402
from vlm_lite.files import data_path  # noqa: E402
from vlm_lite.models.clip import info_nce  # noqa: E402
from vlm_lite.models.qformer import QFormer  # noqa: E402
from vlm_lite.models.text import build_text_batch  # noqa: E402
from vlm_lite.models.vit_weights import load_vit  # noqa: E402
from vlm_lite.models.vlm import VLM  # noqa: E402
from vlm_lite.profiles import TINY, describe, get_compute, get_profile  # noqa: E402
from vlm_lite.train import step_seed  # noqa: E402

IMAGES, STEPS, ROUNDS = 1024, 24, 15


def seconds(call, repeats=1):
    """The shortest of `repeats` timings of `call()`, after one call that is not timed when there are several."""
    if repeats > 1:
        call()
    times = []
    for _ in range(repeats):
        start = now()
        call()
        times.append(now() - start)
    return min(times)


def now():
    """Seconds on a clock, when all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def line(name, value, unit, digits=1):
    print(f"{name:62} {value:10,.{digits}f} {unit}", flush=True)


def in_turn(calls, rounds):
    """{name: the median of its seconds} of `calls` {name: function}, timed in turn so that all meet the same machine.

    The first two rounds are not counted.
    """
    times = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


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
    line("   peak memory of this process until then", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "GB")
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

    def run(step, chosen):
        halved = stages.halved(vlm.language_model, half) if remedies[3] in chosen else contextlib.nullcontext()
        with halved, torch.autocast(compute.device, half, enabled=half is not torch.float32):
            vlm.train()
            return seconds(lambda: one(step, chosen))

    def ceiling(step):
        vlm.prefix = lambda shown: torch.zeros(*shown.shape[:2], vlm.embed.embedding_dim, device=vlm.device,
                                               dtype=vlm.embed.weight.dtype, requires_grad=True)
        try:
            return run(step, remedies)
        finally:
            del vlm.prefix

    plans = {"plain": (), **{name: (name,) for name in remedies}, "all": remedies}
    times = [{**{name: run(step, chosen) for name, chosen in plans.items()}, "ceiling": ceiling(step)}
             for step in range(steps + 2)]  # in turn, on the same rows, so that all meet the same machine
    took = {name: statistics.median(row[name] for row in times[2:]) for name in times[0]}
    line("stage 2, plain loop", 32 / took["plain"], "pictures/s")
    for remedy in remedies:
        line(f"   {remedy}, alone", took["plain"] / took[remedy], "times", 2)
    line("   all four", took["plain"] / took["all"], "times", 2)
    line("   of the ceiling, the language model's own step", 100 * took["ceiling"] / took["all"], "%")


def time_qformer(compute, rounds=ROUNDS):
    """A Q-Former's forward and backward beside `Blip2QFormerModel`'s, at equal size and settings: the ratio of medians.

    Both by `scaled_dot_product_attention`, without dropout, in fp32 and in the precision of the device.
    """
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    large = dict(num_query_tokens=32, width=768, num_layers=12, num_heads=12, mlp_width=3072,
                 cross_attention_frequency=2)
    small_batch = 64 if compute.device == "cuda" else 2
    for name, settings, batch, patches, vision_width in (
            ("Shapes", recipes.SHAPES_QFORMER, 64, 16, 128), ("BLIP-2", large, small_batch, 196, 768)):
        ours = QFormer(vision_width=vision_width, **settings).to(compute.device).train()
        theirs = Blip2QFormerModel(Blip2QFormerConfig(
            hidden_size=settings["width"], num_hidden_layers=settings["num_layers"],
            num_attention_heads=settings["num_heads"], intermediate_size=settings["mlp_width"],
            encoder_hidden_size=vision_width, cross_attention_frequency=settings["cross_attention_frequency"],
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
        )).to(compute.device).train()
        queries = torch.nn.Parameter(torch.randn_like(ours.query_tokens))
        shown = torch.randn(batch, patches, vision_width, device=compute.device)
        passes = {"ours": lambda ours=ours, shown=shown: ours(shown),
                  "theirs": lambda theirs=theirs, shown=shown, queries=queries: theirs(
                      query_embeds=queries.expand(len(shown), -1, -1), encoder_hidden_states=shown).last_hidden_state}
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute.mixed_precision)
        for dtype in (torch.float32, half) if half else (torch.float32,):
            def step(run, dtype=dtype):
                with torch.autocast(compute.device, dtype, enabled=dtype is not torch.float32):
                    out = run()
                out.float().square().mean().backward()

            took = in_turn({key: lambda run=run: step(run) for key, run in passes.items()}, rounds)
            label = f"Q-Former of {name}, batch {batch}, {str(dtype).removeprefix('torch.')}"
            line(f"{label}: forward and backward", 1000 * took["ours"], "ms")
            line("   of Blip2QFormerModel's time at equal settings", took["ours"] / took["theirs"], "times", 2)


def time_connector(compute, steps=STEPS):
    """A training step of the Q-Former on cached features beside the frozen language model's own step on the same rows.

    The ceiling is that model's forward and backward, with a prefix of zeros, and nothing else: no batch to make, no
    nerve, no optimiser.
    """
    vlm = recipes.new_vlm("qformer", num_query_tokens=TINY.num_query_tokens)
    captions, questions = load_shapes("train", IMAGES, progress=False)
    images, _, ids = recipes.load_pictures(captions)
    features = recipes.picture_features(vlm.vision, images, progress=False)
    said = recipes.picture_exchanges(captions, questions)
    exchanges, size = [said[image_id] for image_id in ids], TINY.connector_batch_size
    batches = recipes.exchange_batches(features, exchanges, vlm.tokenizer, size)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute.mixed_precision)
    alone, whole, prefix, ended = [], [], vlm.prefix, [now()]

    def ceiling(done, model):
        whole.append(now() - ended.pop())
        _, *text = batches(done - 1, torch.Generator().manual_seed(step_seed(0, done - 1, "batch")))
        zeros = torch.zeros(size, TINY.num_query_tokens, vlm.embed.embedding_dim, device=vlm.device,
                            dtype=vlm.embed.weight.dtype, requires_grad=True)
        text = [part.to(vlm.device) for part in text]
        vlm.prefix = lambda shown: zeros
        with torch.autocast(compute.device, half or torch.float32, enabled=half is not None):
            alone.append(seconds(lambda: vlm(features[:size], *text).loss.backward()))
        vlm.prefix = prefix
        ended.append(now())

    recipes.train_connector(vlm, features, exchanges, steps=steps, batch_size=size, compute=compute, progress=False,
                            on_step=ceiling)
    own, model = (statistics.median(taken[steps // 3:]) for taken in (whole, alone))
    line(f"connector training step, batch {size}", 1000 * own, "ms")
    line("   of the ceiling, the language model's own step", 100 * model / own, "%")


def time_towers(compute, rounds=9):
    """Our ViT beside timm's and our CLIP beside transformers', at the same weights, sizes, batch, precision and loss.

    Forward and backward, in training mode. The two take turns, so that what else runs on the machine meets both; the
    ratio is the median of those of the rounds.
    """
    import timm
    from transformers import CLIPModel

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute.mixed_precision, torch.float32)
    name = "vit_small_patch16_224"
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10)
    ours = load_vit(name, theirs.state_dict())
    pixels, classes = torch.randn(8, 3, 224, 224), torch.arange(8)
    compare(f"{name}, batch 8: ours / timm's", [
        (ours, lambda x, y: F.cross_entropy(ours(x).logits, y)), (theirs, lambda x, y: F.cross_entropy(theirs(x), y))],
        (pixels, classes), compute.device, half, rounds)

    tokenizer = make_tokenizer()
    captions, _ = load_shapes("train", IMAGES, progress=False)
    images, texts, _ = recipes.load_pictures(captions)
    batch = recipes.caption_batches(images, texts, tokenizer, TINY.clip_batch_size)(0, torch.Generator().manual_seed(0))
    mine = recipes.make_shapes_clip(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        mine.save_pretrained(folder)
        reference = CLIPModel.from_pretrained(folder, dtype=torch.float32)

    def my_loss(x, ids, mask):
        found = mine(x, ids, mask)
        return info_nce(found.image_embeds, found.text_embeds, mine.logit_scale)

    compare(f"CLIP of Shapes, batch {TINY.clip_batch_size}: ours / transformers'", [
        (mine, my_loss), (reference, lambda x, ids, mask: reference(ids, x, mask, return_loss=True).loss)],
        (recipes.pixel_values(batch[0]), *batch[1:]), compute.device, half, rounds)


def compare(name, pair, batch, device, half, rounds):
    """Print the median milliseconds of each (model, loss function) and the median ratio; their losses must agree."""
    batch, times = [part.to(device) for part in batch], ([], [])

    def step(model, loss_fn):
        model.to(device).train().zero_grad(set_to_none=True)
        with torch.autocast(device, half, enabled=half is not torch.float32):
            loss = loss_fn(*batch)
        loss.backward()
        return loss.detach()

    torch.testing.assert_close(*(step(*each) for each in pair), atol=0.05, rtol=0)  # the same work, and the warm-up
    for _ in range(rounds):
        for each, kept in zip(pair, times, strict=True):
            kept.append(seconds(lambda each=each: step(*each)))
    ratio = statistics.median(one / other for one, other in zip(*times, strict=True))
    both = " and ".join(f"{1000 * statistics.median(kept):,.0f}" for kept in times)
    print(f"{name:62} {ratio:10.2f} times ({both} ms)", flush=True)


def main():
    compute = get_compute()
    print(describe(get_profile("tiny"), compute), end="\n\n")
    if sys.argv[1:] == ["towers"]:
        return time_towers(compute)
    time_evaluators()
    time_qformer(compute)
    time_connector(compute)
    time_stages(compute)
    time_towers(compute)
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

    row = {image_id: k for k, image_id in enumerate(ids)}
    asked = list(questions.select_columns(["image_id", "question"]).select(range(min(256, len(questions)))))
    shown, prompts = features[[row[q["image_id"]] for q in asked]], [short_prompt(q["question"]) for q in asked]
    few = len(asked) // 8
    took = in_turn({"alone": lambda: [vlm.generate(shown[k:k + 1], prompts[k:k + 1]) for k in range(few)],
                    "batched": lambda: vlm.generate(shown, prompts)}, 3)
    alone, batched = few / took["alone"], len(asked) / took["batched"]
    line("answering questions, one by one", alone, "answers/s")
    line("answering questions, batched", batched, "answers/s")
    line("   of one by one", batched / alone, "times", 2)


if __name__ == "__main__":
    main()
