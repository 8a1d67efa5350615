"""The commands `vlm-lite train`, notebook 04's staged recipe on one process or several, and `vlm-lite export`."""

import argparse
import dataclasses

from vlm_lite.files import UserError
from vlm_lite.profiles import T4, TINY

EXAMPLE = """examples:
  vlm-lite train stages --folder runs/llava                       one process
  torchrun --standalone --nproc_per_node 2 -m vlm_lite train stages --folder runs/llava     two, one a GPU
  torchrun --nnodes 2 --nproc_per_node 4 --rdzv_endpoint HOST:29500 -m vlm_lite train stages --folder SHARED/llava
  vlm-lite train stages --folder runs/photos --photographs full      COCO's pictures and pretrained models: a GPU

The batch is that of the whole run, shared out among the processes. The same call goes on where a killed one stopped."""

EXPORT = """example:
  vlm-lite export shapes-vlm exported

Writes vision.onnx, language.onnx, tokenizer.json, vocabulary.txt and manifest.json, and checks them with onnxruntime
against PyTorch: outputs to 1e-4, and equal answers to 200 questions. callers/ and docs/demo/ of the clone read them."""


def add_export(commands):
    """Add the command `export` to the parser's `commands`."""
    export = commands.add_parser(
        "export",
        help="a VLM as ONNX files, for a browser or another language",
        epilog=EXPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("run", metavar="RUN", help="a folder of a saved VLM, or a name in the zoo")
    export.add_argument("out", metavar="OUT", help="the folder to write, whole or not at all")
    export.set_defaults(call=run_export)


def run_export(options):
    """`vlm-lite export RUN OUT`."""
    from vlm_lite.data.shapes import load_shapes
    from vlm_lite.export import export
    from vlm_lite.models.vlm import VLM
    from vlm_lite.profiles import resolve_model
    from vlm_lite.recipes import load_pictures

    vlm = VLM.from_pretrained(resolve_model(options.run))
    captions, questions = load_shapes("val", 220)
    images, _, ids = load_pictures(captions)
    asked = {row["image_id"]: row["question"] for row in questions.remove_columns("image")}
    rows = [k for k, name in enumerate(ids) if name in asked][:200]
    found = export(vlm, options.out, images[rows], [asked[ids[k]] for k in rows])
    print(
        f"{options.out}: {found['bytes'] / 1e6:.1f} MB. onnxruntime and PyTorch differ by at most {found['error']:.0e}, "
        f"and answer {found['equal']} of {len(rows)} questions equally."
    )


def add_train(commands):
    """Add the command `train` to the parser's `commands`."""
    train = commands.add_parser("train", help="train a model from the command line")
    actions = train.add_subparsers(dest="action", metavar="ACTION", required=True)
    stages = actions.add_parser(
        "stages",
        help="captions, instructions, VQA, with an evaluation after each (LLaVA)",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages.add_argument(
        "--folder",
        required=True,
        help="checkpoints and scores; a run that was cut goes on from here",
    )
    stages.add_argument(
        "--connector", choices=("mlp", "linear"), default="mlp", help="default: mlp, as LLaVA-1.5"
    )
    stages.add_argument(
        "--photographs",
        choices=("full", "minimal"),
        help="photographs of COCO and pretrained models, about 3 GB from the hub and the COCO site, in "
        "place of the Shapes world; minimal asks half as many questions",
    )
    stages.add_argument(
        "--language-model",
        metavar="ID",
        help="with --photographs: another language model of the hub",
    )
    stages.add_argument(
        "--steps",
        type=_three,
        metavar="A,B,C",
        help=f"steps of the three stages (default {_of(TINY.stage_steps)}; photographs "
        f"{_of(T4.stage_steps)})",
    )
    stages.add_argument(
        "--pictures",
        type=int,
        metavar="N",
        help=f"pictures to train on (default {TINY.stage_images})",
    )
    stages.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help=f"pictures to evaluate with (default {TINY.val_images})",
    )
    stages.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="pictures a step of the first stage, over all processes; later stages take half as many "
        f"(default {TINY.stage_batch_size}; photographs 16)",
    )
    stages.add_argument("--seed", type=int, default=0)
    stages.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), help="default: what this machine is good at"
    )
    stages.set_defaults(call=run_train_stages)


def _of(steps):
    return ",".join(map(str, steps))


def _three(text):
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not three numbers of 1 or more, such as 120,60,100"
        )
    return tuple(map(int, parts))


def run_train_stages(options):
    """`vlm-lite train stages`: train, evaluate after each stage, print the matrix."""
    from accelerate import PartialState

    from vlm_lite import stages
    from vlm_lite.profiles import get_compute

    compute = get_compute()
    compute = dataclasses.replace(
        compute, mixed_precision=options.precision or compute.mixed_precision
    )
    state = PartialState(cpu=compute.device == "cpu")
    state.print(
        f"{state.num_processes} process{'es' if state.num_processes > 1 else ''}, {compute.device}, "
        f"precision {compute.mixed_precision}"
    )
    vlm, train, held_out, plan, more = (_photographs if options.photographs else _shapes)(
        options, state
    )
    found = stages.run_stages(
        vlm,
        train,
        held_out,
        plan,
        folder=options.folder,
        seed=options.seed,
        compute=compute,
        **more,
    )
    state.print(matrix(found))
    state.print(
        f"weights: {options.folder}/stage-3; scores with their intervals: {options.folder}/stage-*.json"
    )
    state.destroy_process_group()  # or gloo's threads outlive it: "terminate called without an active exception"


def _shapes(options, state):
    """What `run_stages` wants of the Shapes world: model, pictures to train on and held out, plan, and the rest."""
    from vlm_lite import recipes, stages
    from vlm_lite.profiles import get_profile

    if options.language_model:
        raise UserError(
            "--language-model goes with --photographs: the Shapes world has its own, in the zoo."
        )
    profile = get_profile(offers=("tiny", "smoke"))
    vlm = recipes.new_vlm(options.connector, seed=options.seed)
    train, held_out = (
        stages.load_pictures(vlm.vision, split, count, progress=state.is_main_process)
        for split, count in (
            ("train", options.pictures or profile.stage_images),
            ("val", options.held_out or profile.val_images),
        )
    )
    return (
        vlm,
        train,
        held_out,
        stages.llava_plan(
            options.steps or profile.stage_steps, options.batch_size or profile.stage_batch_size
        ),
        {},
    )


def _photographs(options, state):
    """The same of photographs."""
    from vlm_lite import photo_stages, recipes
    from vlm_lite.data.photographs import FULL, MINIMAL
    from vlm_lite.data.sources import MODELS

    if options.pictures or options.held_out:
        raise UserError(
            "--pictures and --held-out are for the Shapes world. Photographs come in two sizes: "
            "--photographs full or minimal."
        )
    vlm = recipes.new_vlm(
        options.connector,
        seed=options.seed,
        vision_model=MODELS["eye"],
        language_model=options.language_model or MODELS["instruct brain"],
    ).to(state.device)
    choice = MINIMAL if options.photographs == "minimal" else FULL
    train, held_out = (
        photo_stages.load_photos(vlm.vision, split, choice, progress=state.is_main_process)
        for split in ("train", "val")
    )
    prompt = photo_stages.user_prompt(vlm.tokenizer)
    plan = photo_stages.photo_plan(
        options.steps or T4.stage_steps, options.batch_size or photo_stages.BATCH_SIZE
    )
    return (
        vlm,
        train,
        held_out,
        plan,
        {
            "texts": photo_stages.photo_texts(train, prompt),
            "measure": lambda vlm: photo_stages.evaluate_photos(vlm, held_out, prompt),
        },
    )


def matrix(found):
    """Printable text: a row a stage, a column a metric; * where the interval lies above that of the stage before."""
    from vlm_lite import stages

    names = [
        name
        for name in ("CIDEr", "VQA", "form", "following", *stages.CHECKS)
        if name in found[0][1]
    ]
    lines = [f"{'stage':16}" + "".join(f"{name:>11}" for name in names)]
    before = None
    for stage, scores in found:
        cells = (
            f"{scores[name][0]:.2f}{'*' if before and scores[name][1] > before[name][2] else ' '}"
            for name in names
        )
        lines.append(f"{stage:16}" + "".join(f"{cell:>11}" for cell in cells))
        before = scores
    return "\n".join(lines)
