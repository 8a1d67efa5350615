"""The commands `vlm-lite data ...` and `vlm-lite rehearse`: what can be downloaded, samples of it, and a timed run."""

import argparse
import os
import time
from pathlib import Path

from vlm_lite.files import UserError

READERS = {  # for each kind of data: what --help says, and the files it needs
    "captions": ("COCO captions", ("annotations", "images")),
    "vqa": ("VQA v2", ("questions", "annotations", "images")),
    "llava": ("LLaVA-Instruct", ("annotations", "images")),
    "pope": ("POPE", ("annotations", "images")),
    "mmbench": ("MMBench", ("annotations",)),
    "folder": ("your own pictures with metadata.jsonl", ("images",)),
}
SAMPLE = """examples:
  vlm-lite data sample captions --annotations captions_val2014.json --images val2014/ --count 100 -o sample/
  vlm-lite data sample vqa --questions questions.json --annotations annotations.json --images val2014/ --count 100 -o s/
  vlm-lite data sample mmbench --annotations mmbench_dev_en.tsv --count 20 -o sample/
  vlm-lite data sample folder --images holiday/ --count 10 -o sample/

The sample holds COUNT pictures with all that belongs to them (all rotations of an MMBench question), chosen by the
seed: sample/images/ and sample/metadata.jsonl, one row of the common table a line. `vlm_lite.data.readers.read_folder`
reads it, and so does `datasets.load_dataset("imagefolder", data_dir="sample")`.

Your own pictures work the same way: a folder with a metadata.jsonl of lines such as
  {"file_name": "beach.jpg", "captions": ["two people on a beach"]}
  {"file_name": "beach.jpg", "question": "how many people are there?", "answer": "2"}"""
GET = """example:
  vlm-lite data get --minimal

Brings the annotation files of COCO captions 2014, VQA v2 and LLaVA-Instruct-150K, chooses the same images for
all three, and downloads those: about 0.5 GB of annotations and 1 GB of pictures. Run it again to finish what
was cut."""
REHEARSE = """example:
  vlm-lite rehearse --images 64 --steps 10

Makes a mirror of the sites of profile t4 with models of its sizes, random weights and drawn pictures, then runs t4's
path: choose, fetch, decode, encode, train, answer. No network. The time of each stage, its share of the measured
matrix-product rate, and the peak memory are of this machine."""


def add(commands):
    """Register `data` and `rehearse` with the argparse subparsers of `vlm-lite`."""
    def parser(parent, name, text, call, epilog):
        made = parent.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
        made.set_defaults(call=call)
        return made

    data = commands.add_parser("data", help="real data: where it comes from, getting it, cutting samples of it")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    parser(actions, "list", "every id and address, and what a mirror makes of them", run_list,
           "example:\n  VLM_LITE_MIRROR=http://mirror.example vlm-lite data list")
    get = parser(actions, "get", "download the photographs and texts of profile t4", run_get, GET)
    get.add_argument("--minimal", action="store_true", help="5,000 questions instead of 10,000")
    get.add_argument("--images", type=int, metavar="N", help="N images to train on, with as many questions (default "
                                                             "5,000; a fifth of it is held out)")
    get.add_argument("--seed", type=int, default=0, help="which images (default 0)")
    sample = parser(actions, "sample", "cut a sample of official files, or of a folder of your own", run_sample, SAMPLE)
    sample.add_argument("kind", metavar="KIND", choices=READERS, help="; ".join(
        f"{name}: {about}" for name, (about, _) in READERS.items()))
    sample.add_argument("--annotations", metavar="FILE", help="the official file (vqa: the annotations)")
    sample.add_argument("--questions", metavar="FILE", help="vqa: the questions")
    sample.add_argument("--images", metavar="FOLDER", help="the folder of its pictures")
    sample.add_argument("--count", type=int, required=True, metavar="N", help="how many pictures")
    sample.add_argument("--seed", type=int, default=0, help="which N (default 0)")
    sample.add_argument("-o", "--output", metavar="FOLDER", required=True, help="a folder that is not there yet")
    rehearse = parser(commands, "rehearse", "run and time profile t4's path at its sizes, without a network",
                      run_rehearse, REHEARSE)
    rehearse.add_argument("--images", type=int, help="made pictures, half of them to train on (default 64; 1024 on a "
                                                     "GPU)")
    rehearse.add_argument("--steps", type=int, help="steps of each training (default 3; 30 on a GPU)")
    rehearse.add_argument("--batch-size", type=int, help="pictures a step (default 4; 64, t4's, on a GPU)")
    rehearse.add_argument("--brain", choices=("gpt2", "qwen"), default="gpt2", help="GPT-2, or Qwen2.5-0.5B's size "
                                                                                    "(default gpt2)")
    rehearse.add_argument("--precision", choices=("no", "fp16", "bf16"), help="mixed precision (default: what suits "
                                                                              "this machine; a T4's is fp16)")
    rehearse.add_argument("--json", metavar="FILE", help="write the figures here too")


def run_list(options):
    """`vlm-lite data list`."""
    from vlm_lite.data.sources import MODELS, SOURCES, locate, mirrored_model

    for name, model in MODELS.items():
        print(f"{name:16} {model}" + (f"  -> {mirrored_model(model)}" if mirrored_model(model) else ""))
    for name, source in SOURCES.items():
        size = source.size or source.about
        print(f"{name:16} {locate(source.address)}" + (f"  {size / 1e6:,.1f} MB" if size else "")
              + (f"  {source.hash}" if source.hash else ""))


def run_get(options):
    """`vlm-lite data get`."""
    import dataclasses

    from vlm_lite.data.photographs import FULL, MINIMAL, load_photographs

    choice = dataclasses.replace(MINIMAL if options.minimal else FULL, seed=options.seed)
    if options.images is not None:
        if options.images < 5:
            raise UserError(f"--images {options.images}: expected 5 or more.")
        n = options.images
        choice = dataclasses.replace(choice, images=n, val_images=n // 5, instructions=n, questions=n,
                                     val_questions=n // 5)
    for split in ("train", "val"):
        tables = load_photographs(split, choice)
        print(f"{split}: " + ", ".join(f"{len(table):,} {name}" for name, table in
                                       zip(("images", "questions", "conversations"), tables, strict=True)))


def run_sample(options):
    """`vlm-lite data sample KIND`."""
    from vlm_lite.data import formats, readers

    _, needed = READERS[options.kind]
    lacking = [f"--{name}" for name in needed if getattr(options, name) is None]
    if lacking:
        raise UserError(f"{options.kind} needs {' and '.join(lacking)} too. See vlm-lite data sample --help.")
    if Path(options.output).exists():
        raise UserError(f"{options.output} is there already. Name a folder that is not, so that nothing is lost.")
    read = {"captions": formats.read_coco_captions, "vqa": formats.read_vqa, "llava": readers.read_llava,
            "pope": readers.read_pope, "mmbench": readers.read_mmbench, "folder": readers.read_folder}[options.kind]
    chosen = readers.sample(read(*(getattr(options, name) for name in needed)), options.count, options.seed)
    readers.write_folder(chosen, options.output)
    print(f"{len(chosen)} rows of {options.count} pictures in {options.output}")


def run_rehearse(options):
    """`vlm-lite rehearse`."""
    import dataclasses

    from vlm_lite.files import write_json
    from vlm_lite.profiles import get_compute
    from vlm_lite.rehearsal import make_profile

    compute = get_compute()
    if options.precision:
        compute = dataclasses.replace(compute, mixed_precision=options.precision, reason="you chose it")
    on_gpu = compute.device == "cuda"
    started = time.perf_counter()
    profile = make_profile(options.images or (1024 if on_gpu else 64),
                           brain={"gpt2": "brain", "qwen": "instruct brain"}[options.brain])
    print(f"{compute.device}, {compute.mixed_precision} ({compute.reason}), {os.cpu_count()} CPU cores; the mirror was "
          f"ready in {time.perf_counter() - started:.0f} s: {profile.mirror}\n")
    result = rehearse(profile, compute, steps=options.steps or (30 if on_gpu else 3),
                      batch_size=options.batch_size or (64 if on_gpu else 4), say=print)
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
    from vlm_lite.rehearsal import QFORMER, FreePrefix, choice

    on_gpu = compute.device == "cuda"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute.mixed_precision, torch.float32)
    sync = torch.cuda.synchronize if on_gpu else (lambda: None)
    autocast = torch.autocast(compute.device, half, enabled=half != torch.float32)
    peak = measure_peak(compute.device, half, sync)
    say(f"matrix product, {str(half).removeprefix('torch.')}: {peak / 1e9:,.0f} GFLOP/s\n")
    say(f"{'stage':34} {'seconds':>9} {'a second':>12}  {'share of the peak':>17}")
    stages = {}

    def note(name, seconds, count, unit, flops=None):
        share = flops and flops / seconds / peak
        stages[name] = {"seconds": seconds, "per_second": count / seconds, "unit": unit, "share_of_peak": share}
        say(f"{name:34} {seconds:9.2f} {count / seconds:12,.1f}  {f'{share:.0%}' if share else '':>17}  {unit}")

    def timed(call):
        start = time.perf_counter()
        result = call()
        sync()
        return result, time.perf_counter() - start

    def flops_of(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    captions, questions, _ = timed(lambda: load_photographs("train", choice(profile), mirror=profile.mirror,
                                                            progress=False))[0]
    count = len(captions)
    images, seconds = timed(lambda: image_tensor(captions, profile.image_size)[0])
    note("decode the photographs", seconds, count, "pictures")
    vlm, seconds = timed(lambda: recipes.new_vlm("qformer", vision_model=profile.vision_model,
                                                 language_model=profile.language_model, **QFORMER).to(compute.device))
    note("load eye and brain", seconds, 2, "models")
    said = recipes.picture_exchanges(captions, questions)
    exchanges = [said[image_id] for image_id in captions["image_id"][:]]
    with tempfile.TemporaryDirectory() as folder, autocast:
        one = recipes.pixel_values(images[:1].to(compute.device))
        flops = count * flops_of(lambda: vlm.encode(one))
        features, encoding = timed(lambda: recipes.picture_features(vlm.vision, images, batch_size=max(8, batch_size),
                                                                    folder=Path(folder), progress=False))
        note("encode, once, into the cache", encoding, count, "pictures", flops)

        def train(name, connector):
            vlm.connector = connector.to(compute.device)
            history = recipes.train_connector(vlm, features, exchanges, steps=steps, batch_size=batch_size, log_every=1,
                                              compute=compute, progress=False)
            warm = (steps - 1) // 3
            seconds = (history.seconds[-1] - history.seconds[warm]) / (steps - 1 - warm) if steps > 1 else (
                history.seconds[-1])
            batch = recipes.exchange_batches(features, exchanges, vlm.tokenizer, batch_size)(0, torch.Generator())
            batch = [part.to(compute.device) for part in batch]
            flops = flops_of(lambda: vlm.train()(*batch).loss.backward())
            vlm.zero_grad()
            note(name, seconds, batch_size, "pictures", flops)
            return seconds

        nerve = vlm.connector
        ceiling = train("a step of the brain alone", FreePrefix(nerve.language_width))
        step = train("a step with the Q-Former", nerve)
        prompts = [short_prompt(text) for text in questions["question"][:batch_size]]
        shown = features[:len(prompts)]
        _, seconds = timed(lambda: vlm.eval().generate(shown, prompts[:len(shown)], 8))
        note("answer, 8 words each", seconds, len(shown), "answers")
    result = {
        "stages": stages, "peak_gflops": peak / 1e9, "of_ceiling": ceiling / step,
        "times_plain": (step + encoding * batch_size / count) / step, "batch_size": batch_size, "steps": steps,
        "images": count, "device": compute.device, "precision": compute.mixed_precision,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }
    say(f"\nQ-Former training runs at {result['of_ceiling']:.0%} of its ceiling, the brain's step alone, and "
        f"{result['times_plain']:.1f} times as fast as encoding the pictures at every step.")
    say(f"peak memory: {result['memory_gb']:.1f} GB" + (f", {result['gpu_memory_gb']:.1f} GB on the GPU" if on_gpu
                                                        else ""))
    return result


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
