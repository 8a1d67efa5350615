"""`vlm-lite eval ...` on damaged files: a clean error, or the score of the rows that were left as they were.

A mutation either changes rows so that no score can be right (another type, a lost field, an id twice), takes rows out,
or damages bytes. The score that comes out, if one does, is that of whole and clean files of the rows kept: where rows were
taken out, of questions and answers that have no others; where an answer file was damaged, of its rows as a plain
reading by `json` or `csv` finds them.
VLM_LITE_FUZZ_SEED repeats a run.
"""

import csv
import io
import json
import math
import os
import random
import time

import numpy as np
import pytest

from tests.evals.test_commands import arguments, files, tabs  # noqa: F401 (a fixture)
from tests.evals.test_mmbench import M
from vlm_lite import cli

# `make test` damages the same files each time, so that it says the same of the same code; `make soak` others each time.
SEED = int(os.environ.get("VLM_LITE_FUZZ_SEED", 0)) or 1
GIVEN = {  # the files of each command; the last is the one that answers
    "captions": ("refs.json", "captions.json"),
    "vqa": ("q.json", "a.json", "vqa.json"),
    "pope": ("labels.json", "pope.jsonl"),
    "mmbench": ("t.tsv", "p.tsv"),
    "retrieval": ("e.npz",),
    "zeroshot": ("names.txt",),
}
ODD = [
    None,
    True,
    -1,
    1.5,
    math.nan,
    math.inf,
    2**70,
    "",
    "\ud800",
    "x" * 5000,
    [],
    {},
    [[]],
    {"a": 1},
]
LONGEST = 600


def score(files, benchmark, capsys, partial=True):  # noqa: F811
    """(status, what was said, the JSON or None, seconds) of one run in this process."""
    out = files["t.tsv"].parent / "fuzz.json"
    out.unlink(missing_ok=True)
    partial = ["--partial"] * (partial and benchmark not in ("retrieval", "zeroshot"))
    start = time.perf_counter()
    status = cli.main([*arguments(files, benchmark), "--json", str(out), *partial])
    seconds = time.perf_counter() - start
    found = json.loads(out.read_text("utf-8")) if out.exists() else None
    return status, capsys.readouterr().err, found, seconds


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def without_counts(found):
    return {k: v for k, v in found.items() if k not in ("missing", "unknown", "labels")}


def rows_of(name, text):
    """The records of an answer file, by a plain reading."""
    if name == "p.tsv":
        head, *rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        return [dict(zip(head, row, strict=True)) for row in rows if row]
    if name == "pope.jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return json.loads(text)


def text_of(name, rows):
    if name == "p.tsv":
        return (
            tabs([list(rows[0]), *(row.values() for row in rows)]) if rows else "index\tprediction"
        )
    if name == "pope.jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    return json.dumps(rows)


def keep(files, benchmark, rows):  # noqa: F811
    """Leave in the files of questions only those that `rows` answer (MMBench: in all their rotations)."""
    ids = {int(row.get("question_id", row.get("image_id", row.get("index")))) for row in rows}
    if benchmark == "captions":
        files.change(
            "refs.json", lambda data: _keep_in(data, ids, images="id", annotations="image_id")
        )
    elif benchmark == "vqa":
        files.change("q.json", lambda data: _keep_in(data, ids, questions="question_id"))
        files.change("a.json", lambda data: _keep_in(data, ids, annotations="question_id"))
    elif benchmark == "pope":
        labels = rows_of("pope.jsonl", files["labels.json"].read_text("utf-8"))
        files.write(
            "labels.json", text_of("pope.jsonl", [r for r in labels if r["question_id"] in ids])
        )
    else:
        table = rows_of("p.tsv", files["t.tsv"].read_text("utf-8"))
        cut = {int(row["index"]) % M for row in table if int(row["index"]) not in ids}
        whole = lambda rows: [row for row in rows if int(row["index"]) % M not in cut]  # noqa: E731
        files.write("t.tsv", text_of("p.tsv", whole(table)))
        rows[:] = whole(rows)


def _keep_in(data, ids, **lists):
    for name, key in lists.items():
        data[name] = [row for row in data[name] if row[key] in ids]


def change_somewhere(value, rng):
    """Put something odd, nothing, or a copy in one place of a JSON value."""
    steps = []
    while isinstance(value, dict | list) and value and (not steps or rng.random() < 0.8):
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        steps.append((value, key))
        value = value[key]
    if steps:
        holder, key = steps[-1]
        what = rng.random()
        if what < 0.6:
            holder[key] = rng.choice(ODD)
        elif what < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(holder[key])


def damage_bytes(data, rng):
    data, at = bytearray(data), rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at:at] = rng.choice(
            [b"\xff", b"\0", b'"', b"\t", b"\n", b"\r\n", b"{", b"]", b"\xe2\x82"]
        )
    elif kind == 2:
        del data[at : at + rng.randrange(1, 20)]
    elif kind == 3 and at < len(data):
        data[at] = rng.randrange(256)
    else:
        data[0:0] = rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"\n \n"])
    return bytes(data)


def damage_arrays(path, rng):
    arrays = dict(np.load(path))
    name = rng.choice(list(arrays))
    a = arrays[name]
    changes = [
        lambda: a.astype(rng.choice([">f4", "<f2", "i1", ">i8", "U3", "c8", "?", "O", "V4"])),
        lambda: a[: rng.randrange(len(a))],
        lambda: a[:, None] if a.ndim == 1 else a[:, : rng.randrange(a.shape[1])],
        lambda: a * rng.choice([np.nan, np.inf, -1, 1e200, 0]),
        lambda: a + rng.choice([0.5, 1, -1]),
        lambda: a[None],
    ]
    arrays[name] = rng.choice(changes)()
    if rng.random() < 0.1:
        del arrays[name]
    np.savez(path, **arrays)


def mutate(files, benchmark, rng):  # noqa: F811
    """Damage one file of the command, and return its name and the rows kept (None: not known)."""
    *others, answers = GIVEN[benchmark]
    name, kind = rng.choice([*others, answers, answers]), rng.random()
    path = files[name]
    if name == "e.npz" and kind < 0.6:
        damage_arrays(path, rng)
    elif name == answers and others and kind < 0.35:  # rows out, in another order
        rows = rows_of(name, path.read_text("utf-8"))
        kept = rng.sample(rows, rng.randrange(len(rows) + 1))
        path.write_text(text_of(name, kept), "utf-8")
        return name, kept
    elif name.endswith((".json", ".jsonl")) and kind < 0.7:
        lines = name in ("labels.json", "pope.jsonl")
        text = path.read_text("utf-8")
        value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        change_somewhere(value, rng)
        path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value), "utf-8")
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    return name, None


def check(files, benchmark, capsys, count):  # noqa: F811
    whole = {name: files[name].read_bytes() for name in GIVEN[benchmark]}
    answers = GIVEN[benchmark][-1]
    outcomes = {0: 0, 2: 0}
    for k in range(count):
        rng = random.Random(f"{SEED} {benchmark} {k}")
        for name, content in whole.items():
            files[name].write_bytes(content)
        name, kept = mutate(files, benchmark, rng)
        label = f"VLM_LITE_FUZZ_SEED={SEED}, mutation {k} of {benchmark}, in {name}"
        damaged = files[name].read_bytes()
        status, said, found, seconds = score(files, benchmark, capsys)
        assert status in outcomes, label
        outcomes[status] += 1
        assert seconds < 10, label
        if status == 2:
            said = "".join(line for line in said.splitlines(True) if not line.startswith("note: "))
            assert found is None and len(said) < LONGEST, f"{label}: {said[:900]}"
            assert any(str(files[n]) in said for n in GIVEN[benchmark]), f"{label}: {said}"
            assert "Traceback" not in said and said.count("\n") == 1, f"{label}: {said}"
            continue
        assert all(map(math.isfinite, numbers(found))), f"{label}: {found}"
        if name != answers or benchmark in ("retrieval", "zeroshot"):
            continue
        rows = rows_of(name, damaged.decode("utf-8-sig")) if kept is None else kept
        if kept is not None:
            keep(files, benchmark, rows)
        files.write(name, text_of(name, rows))
        again = score(files, benchmark, capsys, partial=kept is None)
        assert again[0] == 0 and without_counts(again[2]) == without_counts(found), label
    return outcomes


@pytest.mark.parametrize("benchmark", GIVEN)
def test_fifty_damaged_files_end_in_an_error_or_in_the_right_score(files, benchmark, capsys):  # noqa: F811
    outcomes = check(files, benchmark, capsys, 50)
    print(f"VLM_LITE_FUZZ_SEED={SEED} {benchmark}: {outcomes}")
    assert outcomes[0] and outcomes[2]


@pytest.mark.soak
@pytest.mark.parametrize("benchmark", GIVEN)
def test_five_hundred_damaged_files_do_too(files, benchmark, capsys):  # noqa: F811
    global SEED
    if "VLM_LITE_FUZZ_SEED" not in os.environ:
        SEED = random.SystemRandom().randrange(1, 2**31)
    print(f"VLM_LITE_FUZZ_SEED={SEED} {benchmark}: {check(files, benchmark, capsys, 500)}")
