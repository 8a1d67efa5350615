"""How `make bench` takes its times, prints them and keeps them."""

import statistics
import time

import torch

from vlm_lite.files import read_json

ROWS = []  # what `line` has printed since the list was last emptied: the record's rows


def now():
    """Seconds on a clock, when all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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


def in_turn(calls, rounds, warm=2):
    """{name: the median of its seconds} of `calls` {name: function}, timed in turn so that all meet the same machine.

    The first `warm` rounds are not counted.
    """
    times = {name: [] for name in calls}
    for _ in range(rounds + warm):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: statistics.median(taken[warm:]) for name, taken in times.items()}


def line(name, value, unit, digits=1, at_most=None, at_least=None, note=""):
    """Print a row and keep it in ROWS. at_most, at_least: what is aimed at, if any.

    A name that begins with spaces belongs to the row above it.
    """
    row = {"name": name, "value": value, "unit": unit, "digits": digits, "note": note}
    if at_most is not None or at_least is not None:
        row["aim"] = f"{at_least:g} or more" if at_most is None else f"{at_most:g} or less"
        row["met"] = value >= at_least if at_most is None else value <= at_most
    ROWS.append(row)
    aim = f"   (aim: {row['aim']}{'' if row['met'] else ', MISSED'})" if "aim" in row else ""
    print(f"{name:78} {shown(row):>18}{aim}{'   ' + note if note else ''}", flush=True)


def shown(row):
    """A row's value with its unit, as text."""
    return f"{row['value']:,.{row['digits']}f} {row['unit']}".rstrip()


def table(path):
    """The table, in Markdown, of the record at `path`, or "" where there is none."""
    if not path.exists():
        return ""
    parts = sorted(read_json(path).values(), key=lambda part: part["place"])
    rows = ["| what | measured | aim |", "|---|---|---|"]
    for part in parts:
        small = ", **small form: says nothing of speed**" if part["quick"] else ""
        machine = f"{part['hardware']}; torch {part['torch']}"
        run = f"{machine}; {part['commit']}, {part['date']}; {part['seconds']} s{small}"
        rows.append(f"| **{part['what']}** ({run}) | | |")
        for row in part["rows"]:
            depth = (len(row["name"]) - len(row["name"].lstrip())) // 3
            note = f" ({row['note']})" if row["note"] else ""
            aim = row["aim"] + (": met" if row["met"] else ": **missed**") if "aim" in row else ""
            rows.append(f"| {'&emsp;' * depth}{row['name'].strip()}{note} | {shown(row)} | {aim} |")
    return "\n".join(rows)
