"""The command `vlm-lite rehearse`: t4's path on a made mirror, stage by stage, with its times and its memory."""

import argparse
import os
import time

REHEARSE = """example:
  vlm-lite rehearse --images 64 --steps 10

Makes a mirror of the sites of profile t4 with models of its sizes, random weights and drawn images, then runs t4's
path: choose, fetch, decode, encode, train a Q-Former, answer, then LLaVA's stages (captions; conversation, VQA and all
mixed with LoRA) with an evaluation before and after each. No network. The times and the peak memory are of this machine."""


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
        help="made images, half of them to train on (default 64; 1024 on a GPU)",
    )
    rehearse.add_argument(
        "--steps", type=int, help="steps of each training (default 3; 30 on a GPU)"
    )
    rehearse.add_argument(
        "--batch-size", type=int, help="images a step (default 4; 64, t4's, on a GPU)"
    )
    rehearse.add_argument("--json", metavar="FILE", help="write the figures here too")


def run_rehearse(options):
    """`vlm-lite rehearse`."""
    from vlm_lite.files import write_json
    from vlm_lite.profiles import get_compute
    from vlm_lite.rehearsal.mirror import make_profile

    compute = get_compute()
    on_gpu = compute.device == "cuda"
    started = time.perf_counter()
    profile = make_profile(options.images or (1024 if on_gpu else 64))
    print(
        f"{compute.device}, {compute.mixed_precision} ({compute.reason}), {os.cpu_count()} CPU cores; the mirror was "
        f"ready in {time.perf_counter() - started:.0f} s: {profile.mirror}\n"
    )
    result = rehearse(
        profile,
        steps=options.steps or (30 if on_gpu else 3),
        batch_size=options.batch_size or (64 if on_gpu else 4),
    )
    if options.json:
        write_json(options.json, result)
        print(f"written to {options.json}")


def rehearse(profile, *, steps, batch_size, questions=64):
    """Run t4's path on a rehearsal's `profile`, print each part's time as it ends, and return the figures.

    Returns {"stages": {name: {"seconds", "per_second"}}, "memory_gb", "gpu_memory_gb" or None, ...}.
    """
    import resource

    import pandas
    import torch

    from vlm_lite.lessons import coco, coco_stages, llava
    from vlm_lite.lessons.language import chat_prompt, short_prompt
    from vlm_lite.lessons.qformer import QFormerConnector
    from vlm_lite.lessons.vlm import VLM, train_vlm
    from vlm_lite.models.clip import CLIP
    from vlm_lite.models.text import load_language_model
    from vlm_lite.profiles import get_compute
    from vlm_lite.rehearsal.mirror import choice

    compute, found = get_compute(), {}
    print(f"{'part':34} {'seconds':>9} {'a second':>12}")

    def note(name, seconds, count):
        found[name] = {"seconds": seconds, "per_second": count / seconds}
        print(f"{name:34} {seconds:9.2f} {count / seconds:12,.1f}", flush=True)

    def timed(name, count, call):
        start = time.perf_counter()
        result = call()
        if compute.device == "cuda":
            torch.cuda.synchronize()
        note(name, time.perf_counter() - start, count)
        return result

    vision, (language_model, tokenizer) = timed(
        "load the models",
        2,
        lambda: (
            CLIP.from_pretrained(profile.vision_model).to(compute.device),
            load_language_model(profile.language_model),
        ),
    )
    count, options = profile.train_images, {"mirror": profile.mirror, "progress": False}
    train, held_out = (
        timed(
            f"read and encode, {split}",
            size,
            lambda split=split: coco.load_photos(vision, split, choice(profile), **options),
        )
        for split, size in (("train", count), ("val", profile.val_images))
    )
    widths = vision.feature_width, language_model.config.hidden_size
    connector = QFormerConnector(*widths, **coco.QFORMER)
    model = VLM(vision, connector, language_model, tokenizer).to(compute.device)
    said = coco.photo_texts(train, short_prompt)
    turns = [some + asked for some, asked in zip(said["captions"], said["vqa"], strict=True)]
    recipe = {"batch_size": batch_size, "lr": 1e-3, "per_row": 6}
    history = train_vlm(model, train.features, turns, steps=steps, **recipe)
    note("a step with the Q-Former", history.seconds[-1] / steps, batch_size)
    prompts = [short_prompt(text) for text in held_out.questions["question"][:batch_size]]
    shown = held_out.features[: len(prompts)]
    timed(
        "answer, 8 words each",
        len(shown),
        lambda: model.eval().generate(shown, prompts[: len(shown)], 8),
    )
    connector = llava.Projector(*widths)
    model = VLM(vision, connector, language_model, tokenizer).to(compute.device)
    prompt = str if tokenizer.chat_template else chat_prompt  # a template is applied by the model
    plan = coco_stages.photo_plan((steps,) * 3, batch_size)
    talks = coco_stages.photo_talks(train, prompt)
    models, histories = llava.run_stages(model, train.features, talks, plan)
    for name, history in histories.items():
        note(f"stage {name}, a step", history.seconds[-1] / steps, plan[name]["batch_size"])
    # At t4's sizes a CPU needs tenths of a second for each word.
    on_gpu = compute.device == "cuda"
    asked = {"images": 64, "questions": questions, "words": 32 if on_gpu else 4}
    scores = {
        name: timed(
            "evaluate",
            min(64, len(held_out.ids)),
            lambda each=each: coco.evaluate_photos(each, held_out, prompt, **asked),
        )
        for name, each in models.items()
    }
    scores = {name: {k: v[0] for k, v in each.items()} for name, each in scores.items()}
    result = {
        "stages": found,
        "batch_size": batch_size,
        "steps": steps,
        "images": count,
        "device": compute.device,
        "precision": compute.mixed_precision,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }
    print(
        f"\n{pandas.DataFrame(scores).T.round(2).to_string()}\n"
        "The weights are random, so these scores mean nothing: they show that every stage ran.\n"
        f"\npeak memory: {result['memory_gb']:.1f} GB"
        + (f", {result['gpu_memory_gb']:.1f} GB on the GPU" if on_gpu else "")
    )
    return result
