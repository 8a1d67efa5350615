"""The command `vlm-lite rehearse`: t4's path on a made mirror, stage by stage, with its times and its memory."""

import argparse
import os
import time
from pathlib import Path

REHEARSE = """example:
  vlm-lite rehearse --images 64 --steps 10

Makes a mirror of the sites of profile t4 with models of its sizes, random weights and drawn pictures, then runs t4's
path: choose, fetch, decode, encode, train a Q-Former, answer, then LLaVA's stages (captions; conversation, VQA and all
mixed with LoRA) with an evaluation before and after each. No network. The time of each part, its share of the measured
matrix-product rate, and the peak memory are of this machine."""


def add(commands):
    """Register `rehearse` with the argparse subparsers of `vlm-lite`."""
    rehearse = commands.add_parser(
        "rehearse",
        help="run and time profile t4's path at its sizes, without a network",
        epilog=REHEARSE,
        description="Runs and times profile t4's path at its sizes, without a network.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rehearse.set_defaults(call=run_rehearse)
    rehearse.add_argument(
        "--images",
        type=int,
        help="made pictures, half of them to train on (default 64; 1024 on a GPU)",
    )
    rehearse.add_argument(
        "--steps", type=int, help="steps of each training (default 3; 30 on a GPU)"
    )
    rehearse.add_argument(
        "--batch-size", type=int, help="pictures a step (default 4; 64, t4's, on a GPU)"
    )
    rehearse.add_argument(
        "--brain",
        choices=("gpt2", "qwen"),
        default="gpt2",
        help="GPT-2, or Qwen2.5-0.5B's size (default gpt2)",
    )
    rehearse.add_argument(
        "--precision",
        choices=("no", "fp16", "bf16"),
        help="mixed precision (default: what suits this machine; a T4's is fp16)",
    )
    rehearse.add_argument("--json", metavar="FILE", help="write the figures here too")


def run_rehearse(options):
    """`vlm-lite rehearse`."""
    import dataclasses

    from vlm_lite.files import write_json
    from vlm_lite.profiles import get_compute
    from vlm_lite.rehearsal.mirror import make_profile

    compute = get_compute()
    if options.precision:
        compute = dataclasses.replace(
            compute, mixed_precision=options.precision, reason="you chose it"
        )
    on_gpu = compute.device == "cuda"
    started = time.perf_counter()
    profile = make_profile(
        options.images or (1024 if on_gpu else 64),
        brain={"gpt2": "brain", "qwen": "instruct brain"}[options.brain],
    )
    print(
        f"{compute.device}, {compute.mixed_precision} ({compute.reason}), {os.cpu_count()} CPU cores; the mirror was "
        f"ready in {time.perf_counter() - started:.0f} s: {profile.mirror}\n"
    )
    result = rehearse(
        profile,
        compute,
        steps=options.steps or (30 if on_gpu else 3),
        batch_size=options.batch_size or (64 if on_gpu else 4),
        say=print,
    )
    if options.json:
        write_json(options.json, result)
        print(f"written to {options.json}")


def rehearse(profile, compute, *, steps, batch_size, say=print):
    """Run t4's path on a rehearsal's `profile` and return its figures, each stage said as it ends.

    Returns {"stages": {name: {"seconds", "per_second", "unit", "share_of_peak" or None}}, "peak_gflops", "of_ceiling",
    "times_plain", "memory_gb", "gpu_memory_gb" or None, ...}. share_of_peak: floating-point operations, as
    torch.utils.flop_counter counts them, by the second, over those of a matrix product in the same precision.
    """
    import resource
    import tempfile

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vlm_lite import recipes
    from vlm_lite.data.formats import image_tensor
    from vlm_lite.data.language import short_prompt
    from vlm_lite.data.photographs import load_photographs
    from vlm_lite.rehearsal.mirror import QFORMER, FreePrefix, choice

    on_gpu = compute.device == "cuda"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        compute.mixed_precision, torch.float32
    )
    sync = torch.cuda.synchronize if on_gpu else (lambda: None)
    autocast = torch.autocast(compute.device, half, enabled=half != torch.float32)
    peak = measure_peak(compute.device, half, sync)
    say(f"matrix product, {str(half).removeprefix('torch.')}: {peak / 1e9:,.0f} GFLOP/s\n")
    say(f"{'stage':34} {'seconds':>9} {'a second':>12}  {'share of the peak':>17}")
    found = {}

    def note(name, seconds, count, unit, flops=None):
        share = flops and flops / seconds / peak
        found[name] = {
            "seconds": seconds,
            "per_second": count / seconds,
            "unit": unit,
            "share_of_peak": share,
        }
        say(
            f"{name:34} {seconds:9.2f} {count / seconds:12,.1f}  {f'{share:.0%}' if share else '':>17}  {unit}"
        )

    def timed(call):
        start = time.perf_counter()
        result = call()
        sync()
        return result, time.perf_counter() - start

    def flops_of(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    captions, questions, _ = timed(
        lambda: load_photographs("train", choice(profile), mirror=profile.mirror, progress=False)
    )[0]
    count = len(captions)
    images, seconds = timed(lambda: image_tensor(captions, profile.image_size)[0])
    note("decode the photographs", seconds, count, "pictures")
    vlm, seconds = timed(
        lambda: recipes.new_vlm(
            "qformer",
            vision_model=profile.vision_model,
            language_model=profile.language_model,
            **QFORMER,
        ).to(compute.device)
    )
    note("load eye and brain", seconds, 2, "models")
    said = recipes.picture_exchanges(captions, questions)
    exchanges = [said[image_id] for image_id in captions["image_id"][:]]
    with tempfile.TemporaryDirectory() as folder, autocast:
        one = recipes.pixel_values(images[:1].to(compute.device))
        flops = count * flops_of(lambda: vlm.encode(one))
        features, encoding = timed(
            lambda: recipes.picture_features(
                vlm.vision,
                images,
                batch_size=max(8, batch_size),
                folder=Path(folder),
                progress=False,
            )
        )
        note("encode, once, into the cache", encoding, count, "pictures", flops)

        def train(name, connector):
            vlm.connector = connector.to(compute.device)
            history = recipes.train_connector(
                vlm,
                features,
                exchanges,
                steps=steps,
                batch_size=batch_size,
                log_every=1,
                compute=compute,
                progress=False,
            )
            warm = (steps - 1) // 3
            seconds = (
                (history.seconds[-1] - history.seconds[warm]) / (steps - 1 - warm)
                if steps > 1
                else (history.seconds[-1])
            )
            batch = recipes.exchange_batches(features, exchanges, vlm.tokenizer, batch_size)(
                0, torch.Generator()
            )
            batch = [part.to(compute.device) for part in batch]
            flops = flops_of(lambda: vlm.train()(*batch).loss.backward())
            vlm.zero_grad()
            note(name, seconds, batch_size, "pictures", flops)
            return seconds

        nerve = vlm.connector
        ceiling = train("a step of the brain alone", FreePrefix(nerve.settings["language_width"]))
        step = train("a step with the Q-Former", nerve)
        prompts = [short_prompt(text) for text in questions["question"][:batch_size]]
        shown = features[: len(prompts)]
        _, seconds = timed(lambda: vlm.eval().generate(shown, prompts[: len(shown)], 8))
        note("answer, 8 words each", seconds, len(shown), "answers")
    scores = rehearse_stages(profile, compute, steps, batch_size, timed, note)
    result = {
        "stages": found,
        "peak_gflops": peak / 1e9,
        "of_ceiling": ceiling / step,
        "times_plain": (step + encoding * batch_size / count) / step,
        "batch_size": batch_size,
        "steps": steps,
        "images": count,
        "device": compute.device,
        "precision": compute.mixed_precision,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }
    say(
        f"\n{scores.round(2).to_string()}\nThe weights are random, so these scores mean nothing: they show that every stage ran."
    )
    say(
        f"\nQ-Former training runs at {result['of_ceiling']:.0%} of its ceiling, the brain's step alone, and "
        f"{result['times_plain']:.1f} times as fast as encoding the pictures at every step."
    )
    say(
        f"peak memory: {result['memory_gb']:.1f} GB"
        + (f", {result['gpu_memory_gb']:.1f} GB on the GPU" if on_gpu else "")
    )
    return result


def rehearse_stages(profile, compute, steps, batch_size, timed, note):
    """LLaVA's stages on the rehearsal's photographs, each timed by `note`; a DataFrame of their scores."""
    import pandas

    from vlm_lite import photo_stages
    from vlm_lite.data.language import chat_prompt
    from vlm_lite.lessons import llava
    from vlm_lite.lessons.vlm import VLM
    from vlm_lite.models.clip import CLIP
    from vlm_lite.models.text import load_language_model
    from vlm_lite.rehearsal.mirror import choice

    vision = CLIP.from_pretrained(profile.vision_model)
    language_model, tokenizer = load_language_model(profile.language_model)
    projector = llava.Projector(vision.feature_width, language_model.config.hidden_size)
    vlm = VLM(vision, projector, language_model, tokenizer).to(compute.device)
    train, held_out = (
        photo_stages.load_photos(
            vlm.vision, split, choice(profile), mirror=profile.mirror, progress=False
        )
        for split in ("train", "val")
    )
    prompt = str if tokenizer.chat_template else chat_prompt  # a template is applied by the model
    plan = photo_stages.photo_plan((steps,) * 3, batch_size)
    talks = photo_stages.photo_talks(train, prompt)
    models, histories = llava.run_stages(vlm, train.features, talks, plan)
    for name, history in histories.items():
        size = plan[name]["batch_size"]
        note(f"stage {name}, a step", history.seconds[-1] / steps, size, "pictures")
    # At t4's sizes a CPU needs tenths of a second for each word.
    options = {"pictures": 64, "questions": 64, "words": 32 if compute.device == "cuda" else 4}
    scores = {}
    for name, model in models.items():
        scores[name], seconds = timed(
            lambda model=model: photo_stages.evaluate_photos(model, held_out, prompt, **options)
        )
        note("evaluate", seconds, min(64, len(held_out.ids)), "pictures")
    return pandas.DataFrame({n: {k: v[0] for k, v in each.items()} for n, each in scores.items()}).T


def measure_peak(device, dtype, sync, size=None):
    """Floating-point operations a second of the fastest of four matrix products."""
    import torch

    size = size or (8192 if device == "cuda" else 1024)
    a = torch.randn(size, size, device=device).to(dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        sync()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])
