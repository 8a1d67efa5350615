"""The commands `vlm-lite lab ...`: make the copies that are handed out, and grade those that come back."""

import argparse
import sys
from pathlib import Path

EXAMPLES = {  # shown by --help
    "student": "vlm-lite lab student notebooks/01_clip_infonce.ipynb -o lab01.ipynb",
    "solution": "vlm-lite lab solution notebooks/01_clip_infonce.ipynb -o solved01.ipynb",
    "rubric": "vlm-lite lab rubric notebooks/01_clip_infonce.ipynb",
    "all": "vlm-lite lab all -o handed-out",
    "grade": """vlm-lite lab grade handed-in --json grades.json

This runs code that your students wrote, with your rights. Do it on a machine of its own or in a container:
docs/teaching.md has the two lines. Exit status 1: a copy could not be graded at all.""",
}


def add(commands):
    """Add `lab` and its actions to the subparsers of the command line."""
    lab = commands.add_parser("lab", help="make labs of the notebooks, and grade them")
    actions = lab.add_subparsers(dest="action", metavar="ACTION", required=True)

    def adding(name, text):
        return actions.add_parser(
            name,
            help=text,
            epilog="example:\n  " + EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    for name, call, text in (
        ("student", run_student, "the student's copy: answers and outputs taken out"),
        ("solution", run_solution, "the solved copy"),
        ("rubric", run_rubric, "exercises, points, minutes, and what each check looks for"),
    ):
        action = adding(name, text)
        action.add_argument(
            "notebook",
            metavar="NOTEBOOK",
            help="a notebook of the course, such as notebooks/01_clip_infonce.ipynb",
        )
        action.add_argument(
            "-o", "--output", metavar="FILE", help="where to write it (default: print it)"
        )
        action.set_defaults(call=call)
    every = adding("all", "the student's copy of every lab and their rubric, into one folder")
    every.add_argument("-o", "--output", metavar="FOLDER", required=True)
    every.add_argument(
        "--notebooks", metavar="FOLDER", help="where the notebooks are (default: this clone's)"
    )
    every.set_defaults(call=run_all)
    grade = adding("grade", "run students' copies and say, exercise by exercise, what is right")
    grade.add_argument(
        "copies", metavar="COPY", nargs="+", help="notebooks, or folders with notebooks in them"
    )
    grade.add_argument(
        "--lab",
        metavar="NAME",
        help="the notebook that all must be copies of, such as 01_clip_infonce",
    )
    grade.add_argument("--json", metavar="FILE", help="write the reports there as JSON, too")
    grade.add_argument(
        "--jobs", type=_positive, help="copies graded at a time (default: half the cores)"
    )
    grade.add_argument(
        "--timeout", type=_positive, default=600, help="seconds a copy may take (default 600)"
    )
    grade.add_argument(
        "--check-timeout", type=_positive, default=30, help="seconds a check may take (default 30)"
    )
    grade.add_argument(
        "--profile",
        choices=("smoke", "tiny", "t4"),
        default="smoke",
        help="what the copies run on (default smoke: a few images and steps)",
    )
    grade.add_argument(
        "--whole", action="store_true", help="run each copy to its end, not only to its last check"
    )
    grade.add_argument(
        "--notebooks", metavar="FOLDER", help="where the notebooks are (default: this clone's)"
    )
    grade.set_defaults(call=run_grade)


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def run_student(options):
    """`vlm-lite lab student NOTEBOOK`."""
    from vlm_lite.labs import build

    path = Path(options.notebook)
    notebook = build.read(path)
    siblings = {
        other.stem
        for other in path.parent.glob("[0-9][0-9]*_*.ipynb")
        if build.exercises(build.read(other))
    }
    _give(options, build.dumps(build.student(notebook, path.stem, siblings)))


def run_solution(options):
    """`vlm-lite lab solution NOTEBOOK`."""
    from vlm_lite.labs import build

    _give(
        options,
        build.dumps(build.solution(build.read(options.notebook), Path(options.notebook).stem)),
    )


def run_rubric(options):
    """`vlm-lite lab rubric NOTEBOOK`."""
    from vlm_lite.labs import build

    _give(options, build.rubric(build.read(options.notebook), Path(options.notebook).stem))


def run_all(options):
    """`vlm-lite lab all -o FOLDER`."""
    from vlm_lite.labs import build

    for path in build.build_all(options.output, options.notebooks):
        print(path)


def run_grade(options):
    """`vlm-lite lab grade COPY ...`: exit status 1 when a copy could not be graded at all."""
    from vlm_lite.files import write_json
    from vlm_lite.labs.grade import as_text, grade

    reports = grade(
        options.copies,
        notebooks=options.notebooks,
        lab=options.lab,
        jobs=options.jobs,
        seconds=options.timeout,
        check_seconds=options.check_timeout,
        profile=options.profile,
        whole=options.whole,
        on_done=lambda report: print(as_text(report), flush=True),
    )
    if options.json:
        write_json(options.json, reports)
    return int(any(not report["exercises"] for report in reports))


def _give(options, text):
    from vlm_lite.labs.build import write

    if options.output:
        write(options.output, text)
        print(f"wrote {options.output}")
    else:
        sys.stdout.write(text)
