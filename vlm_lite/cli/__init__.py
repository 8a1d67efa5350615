"""The command `vlm-lite`. Each subcommand imports what it needs only when it is called."""

import argparse
import contextlib
import importlib
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import vlm_lite
from vlm_lite import machine
from vlm_lite.commands import add_export
from vlm_lite.data.commands import add as add_data
from vlm_lite.evals.commands import add_eval
from vlm_lite.files import UserError, data_path, home, read_json
from vlm_lite.labs.commands import add as add_labs
from vlm_lite.profiles import TINY
from vlm_lite.rehearsal.commands import add as add_rehearse

ZOO = (TINY.vision_model, TINY.language_model, TINY.vlm_model, "shapes-llava")
NEEDED_FREE_GB = 2.0
REPORT_EXAMPLE = """example:
  vlm-lite report shapes-vlm --out shapes-vlm-report.html

Asks about held-out pictures of the Shapes world, with and without the right picture. About a minute on two cores."""


def main(arguments=None):
    """Run the command line and return its exit status: 0, 1 (doctor found something), 2 (user's), 130 (Ctrl-C),
    141 (nobody reads what it prints any more, as in `| head -1`).
    """
    try:
        status = _main(arguments)
        sys.stdout.flush()
        return status
    except OSError as error:
        with open(os.devnull, "w") as nowhere, contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # what is left in the buffer goes there
        if isinstance(error, BrokenPipeError):
            return 141
        print(f"vlm-lite: {UserError(error)}", file=sys.stderr)
        return 2


def _main(arguments):
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return options.call(options) or 0
    except UserError as error:
        print(f"vlm-lite: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlm-lite: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        hint = machine.memory_hint(error)
        if not hint:
            raise
        print(f"vlm-lite: {hint} ({type(error).__name__}: {error})", file=sys.stderr)
        return 2


def build_parser():
    """The argparse parser; every subcommand sets `call`, a function of the parsed options."""
    parser = argparse.ArgumentParser(
        prog="vlm-lite", description="Build small vision-language models, and show that they look."
    )
    parser.add_argument("--version", action="version", version=f"vlm-lite {vlm_lite.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    commands.add_parser(
        "doctor", help="what this machine is, what was chosen and why, and what is missing"
    ).set_defaults(call=run_doctor)

    zoo = commands.add_parser("zoo", help="the small checkpoints that ship with the course")
    actions = zoo.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="make a checkpoint again from nothing")
    build.add_argument("name", metavar="NAME", help=f"one of: {', '.join(ZOO)}")
    build.set_defaults(call=lambda options: _tool("zoo").build(options.name))
    actions.add_parser("list", help="the checkpoints, and whether each is whole").set_defaults(
        call=run_zoo_list
    )

    study = commands.add_parser(
        "study", help="run a recorded study and write data/results/NAME.json"
    )
    study.add_argument(
        "name", metavar="NAME", help="such as clip_infonce; any other word lists all"
    )
    study.add_argument("--seeds", type=_positive, default=3, help="how many seeds (default 3)")
    study.set_defaults(call=run_study)
    add_data(commands)
    add_rehearse(commands)
    commands.add_parser(
        "verify-t4", help="run the notebooks at t4, on a GPU with the hub, and print what to report"
    ).set_defaults(call=lambda options: _tool("course").main(["--t4"]))
    report = commands.add_parser(
        "report",
        help="one page about a VLM: scores, controls, answers, failures",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=REPORT_EXAMPLE,
    )
    report.add_argument(
        "run", metavar="RUN", help="a folder that VLM.save_pretrained wrote, or a name in the zoo"
    )
    report.add_argument(
        "--out",
        metavar="FILE.html",
        help="the page (default NAME-report.html here); JSON goes beside",
    )
    report.add_argument(
        "--questions", type=_positive, default=500, help="how many are asked (default 500)"
    )
    report.set_defaults(call=run_report)
    add_export(commands)
    add_eval(commands)
    add_labs(commands)
    return parser


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _tool(name):
    """tools/NAME.py of the clone, as a module."""
    sys.path.insert(0, str(Path(vlm_lite.__file__).parents[1]))
    try:
        return importlib.import_module(f"tools.{name}")
    except ImportError as error:
        raise UserError(
            f"this needs a clone of the repository with all it uses ({error}): make setup, or pip install -e .[dev]"
        ) from error


def run_zoo_list(options):
    """`vlm-lite zoo list`: exit status 1 when a checkpoint is missing or cut short."""
    faults = 0
    for name in ZOO:
        size, fault = check_checkpoint(name)
        print(f"{name:14} {size / 1e6:6.1f} MB  {fault or 'whole'}")
        faults |= bool(fault)
    return faults


def run_study(options):
    """`vlm-lite study NAME --seeds N`."""
    from vlm_lite import studies

    studies.run(options.name, seeds=options.seeds)


def run_report(options):
    """`vlm-lite report RUN`."""
    from vlm_lite.cli.report import write_report

    out = options.out or f"{os.path.basename(os.path.normpath(options.run))}-report.html"
    facts = write_report(options.run, out, questions=options.questions)
    for name, score in facts["accuracy"].items():
        print(
            f"{name:15} {100 * score['value']:5.1f}%  [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
        )
    print(f"{facts['questions']} questions; written to {out} and {os.path.splitext(out)[0]}.json")


def check_checkpoint(name):
    """(bytes on disk, fault or None) of the zoo's model `name`: config readable, weights neither missing nor cut."""
    try:
        folder = data_path("zoo", name)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        # shapes-llava is what notebook 04 trained, without a config of its own
        read_json(folder / ("card.json" if name == "shapes-llava" else "config.json"))
        weights = data_path("zoo", name, "model.safetensors")
    except UserError as error:
        return 0, str(error)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy") as tensors:
            tensors.keys()
    except (OSError, SafetensorError) as error:
        return size, (
            f"{weights} is cut short or damaged ({error}). Run `git checkout -- data` in a clone, install "
            f"the package again, or make it: vlm-lite zoo build {name}"
        )
    return size, None


def run_doctor(options):
    """`vlm-lite doctor`: print what this machine is and what was chosen; exit status 1 where something is missing."""
    needed, optional = [], []
    rows = [("vlm-lite", f"{vlm_lite.__version__} in {os.path.dirname(vlm_lite.__file__)}")]
    rows += _doctor_machine(needed, optional)
    if not any(fatal for fatal, _ in machine.concerns()):  # else loading a library ends in an error
        rows += _doctor_packages(needed)
        rows += _doctor_storage(needed)
        rows += _doctor_java(optional)
        rows += _doctor_choice(needed, optional)
    for name, text in rows:
        print(f"{name:10} {text}")
    for title, faults in (("Missing", needed), ("You may also want", optional)):
        if faults:
            print(f"\n{title}:")
            print("\n".join(f"  - {fault}" for fault in faults))
    if not needed:
        print("\nEverything that the course needs on this profile is here.")
    return int(bool(needed))


def _doctor_machine(needed, optional):
    if not (3, 11) <= sys.version_info < (3, 14):
        needed.append(
            f"Python 3.11 to 3.13 (this is {platform.python_version()}): use another python3"
        )
    for fatal, line in machine.concerns():
        (needed if fatal else optional).append(line)
    cpu = f"{os.cpu_count()} cores"
    with contextlib.suppress(ImportError):
        from vlm_lite.profiles import memory_gb

        cpu += f", {memory_gb():.1f} GB of memory"
    return [
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", platform.platform()),
        ("cpu", cpu),
    ]


def _doctor_packages(needed):
    versions = {}
    try:
        from packaging.requirements import Requirement

        wanted = [
            Requirement(line)
            for line in metadata.requires("vlm-lite") or []
            if "extra ==" not in line
        ]
    except (ImportError, metadata.PackageNotFoundError):
        needed.append(
            "vlm-lite as an installed package, which brings what it needs: make setup, or pip install -e ."
        )
        return [("packages", "unknown")]
    for package in wanted:
        try:
            versions[package.name] = found = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            needed.append(f"the package {package.name}: pip install '{package}'")
            continue
        if not package.specifier.contains(found, prereleases=True):
            needed.append(
                f"another version of {package.name} ({found} is installed): pip install '{package}'"
            )
    if "torch" in versions and "torchvision" in versions:
        try:
            import torchvision  # noqa: F401
        except Exception as error:  # a torchvision built for another torch fails in many ways
            needed.append(
                f"a torchvision that fits torch ({type(error).__name__}: {error}): install both from one "
                "source, pip install --force-reinstall torch torchvision"
            )
    return [
        ("packages", ", ".join(f"{name} {version}" for name, version in versions.items()) or "none")
    ]


def _doctor_storage(needed):
    rows = []
    try:
        folder = home()
        free = shutil.disk_usage(folder).free / 1e9
        rows.append(("home", f"{folder}, {free:.1f} GB free"))
        if free < NEEDED_FREE_GB:
            needed.append(
                f"{NEEDED_FREE_GB:g} GB of free disk in {folder} (there are {free:.1f}): free some space, or "
                "set VLM_LITE_HOME to another folder"
            )
    except UserError as error:
        needed.append(str(error))
    try:
        found = {name: check_checkpoint(name) for name in ZOO}
    except ImportError:  # safetensors is already in the list of what is missing
        return rows
    needed += [f"the checkpoint {name}: {fault}" for name, (_, fault) in found.items() if fault]
    whole = [f"{name} ({size / 1e6:.1f} MB)" for name, (size, fault) in found.items() if not fault]
    return [*rows, ("zoo", ", ".join(whole) or "none whole")]


def _doctor_java(optional):
    try:
        from vlm_lite.evals.captions import find_java

        return [("java", str(find_java()))]
    except UserError as error:
        optional.append(f"Java, for the caption scores: {error}")
    except ImportError:  # the missing package is already in the list
        pass
    return [("java", "none")]


def _doctor_choice(needed, optional):
    try:
        import torch

        from vlm_lite import profiles
    except ImportError:
        return []
    try:
        profile = profiles.get_profile()
        chosen = f"{profile.name} ({profile.reason})"
    except UserError as error:
        needed.append(str(error))
        chosen = "none"
    compute = profiles.get_compute()
    if compute.device == "cpu":
        optional.append(
            "a CUDA GPU, for the t4 profile on real photographs: open a notebook in Colab and choose a "
            "GPU runtime (the tiny profile needs none)"
        )
    gpu = "none"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, {properties.total_memory / 1e9:.1f} GB"
    return [
        ("gpu", gpu),
        ("profile", chosen),
        (
            "device",
            f"{compute.device}, {compute.mixed_precision.replace('no', 'fp32')} ({compute.reason})",
        ),
        *_doctor_speed(compute),
    ]


def _doctor_speed(compute):
    import torch

    from vlm_lite import speed

    rates = [
        f"{name} {speed.matmul_rate(dtype):.0f}"
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    ]
    factor, _, recorded = speed.slowdown(compute)
    column = speed.recorded_times()[speed.kind_of_cpu(compute)]
    minutes = sum(s for name, s in column["seconds"].items() if name[:2].isdecimal()) / 60
    return [
        ("speed", f"{' and '.join(rates)} GFLOP/s on {torch.get_num_threads()} threads"),
        (
            "course",
            f"about {minutes * factor:.0f} minutes for every notebook on the profile tiny; recorded "
            f"{minutes:.0f} on {column['cpu']} at {recorded:.0f} GFLOP/s, {column['date']}",
        ),
    ]
