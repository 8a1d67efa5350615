"""The command `vlm-lite train`: the staged recipe of notebook 04, on one process or several."""

import argparse
import dataclasses

EXAMPLE = """examples:
  vlm-lite train stages --folder runs/llava                       one process
  torchrun --standalone --nproc_per_node 2 -m vlm_lite train stages --folder runs/llava     two, one a GPU
  torchrun --nnodes 2 --nproc_per_node 4 --rdzv_endpoint HOST:29500 -m vlm_lite train stages --folder SHARED/llava

The batch is that of the whole run, shared out among the processes. The same call goes on where a killed one stopped."""


def add_train(commands):
    """Add the command `train` to the parser's `commands`."""
    train = commands.add_parser("train", help="train a model from the command line")
    actions = train.add_subparsers(dest="action", metavar="ACTION", required=True)
    stages = actions.add_parser("stages", help="captions, instructions, VQA, with an evaluation after each (LLaVA)",
                                epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages.add_argument("--folder", required=True, help="checkpoints and scores; a run that was cut goes on from here")
    stages.add_argument("--connector", choices=("mlp", "linear"), default="mlp", help="default: mlp, as LLaVA-1.5")
    stages.add_argument("--steps", type=_three, metavar="A,B,C", help="steps of the three stages")
    stages.add_argument("--pictures", type=int, metavar="N", help="pictures to train on")
    stages.add_argument("--held-out", type=int, metavar="N", help="pictures to evaluate with")
    stages.add_argument("--batch-size", type=int, metavar="N", help="pictures a step, over all processes")
    stages.add_argument("--seed", type=int, default=0)
    stages.add_argument("--precision", choices=("no", "bf16", "fp16"), help="default: what this machine is good at")
    stages.set_defaults(call=run_train_stages)


def _three(text):
    steps = tuple(int(part) for part in text.split(","))
    if len(steps) != 3 or min(steps) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers of 1 or more, such as 120,100,100")
    return steps


def run_train_stages(options):
    """`vlm-lite train stages`: train, evaluate after each stage, print the matrix."""
    from accelerate import PartialState

    from vlm_lite import recipes, stages
    from vlm_lite.profiles import get_compute, get_profile

    profile, compute = get_profile(offers=("tiny", "smoke")), get_compute()
    compute = dataclasses.replace(compute, mixed_precision=options.precision or compute.mixed_precision)
    state = PartialState(cpu=compute.device == "cpu")
    state.print(f"{state.num_processes} process{'es' if state.num_processes > 1 else ''}, {compute.device}, "
                f"precision {compute.mixed_precision}")
    vlm = recipes.new_vlm(options.connector, seed=options.seed)
    train, held_out = (stages.load_pictures(vlm.vision, split, count, progress=state.is_main_process) for split, count
                       in (("train", options.pictures or profile.stage_images),
                           ("val", options.held_out or profile.val_images)))
    found = stages.run_stages(vlm, train, held_out, stages.llava_plan(
        options.steps or profile.stage_steps, options.batch_size or profile.connector_batch_size),
        folder=options.folder, seed=options.seed, compute=compute)
    state.print(matrix(found))
    state.print(f"weights: {options.folder}/stage-3; scores with their intervals: {options.folder}/stage-*.json")


def matrix(found):
    """Printable text: a row a stage, a column a metric; * where the interval lies above that of the stage before."""
    from vlm_lite import stages

    names = [name for name in ("CIDEr", "VQA", "form", "following", *stages.CHECKS) if name in found[0][1]]
    lines = [f"{'stage':16}" + "".join(f"{name:>11}" for name in names)]
    before = None
    for stage, scores in found:
        cells = (f"{scores[name][0]:.2f}{'*' if before and scores[name][1] > before[name][2] else ' '}"
                 for name in names)
        lines.append(f"{stage:16}" + "".join(f"{cell:>11}" for cell in cells))
        before = scores
    return "\n".join(lines)
