"""`vlm-lite eval ...` on damaged files: a clean error, or the right score of the rows that were kept.

A mutation either changes rows (another type, a lost field, an id twice), takes rows out, or damages bytes, of any file of
the command. If a score comes out, it is that of clean files with the rows that a plain reading by `json` or `csv` finds
and that both sides share; recall is counted again from the arrays.
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

from tests.evals.official import OWNERS, M, lines, tabs
from vlm_lite import cli

# `make test` damages the same files each time, so that it says the same of the same code; `make soak` others each time.
SEED = int(os.environ.get("VLM_LITE_FUZZ_SEED", 0)) or 1
# the files of each command; the last is the one that answers
GIVEN = {b: [name for name in OWNERS if OWNERS[name] == b] for b in dict.fromkeys(OWNERS.values())}
ODD = [None, True, -1, 1.5, math.nan, math.inf, 2**70, "", "\ud800", "x" * 5000]
ODD += [[], {}, [[]], {"a": 1}]
LONGEST = 600


def score(files, benchmark, capsys, partial=True):
    """(status, what was said, the JSON or None, seconds) of one run in this process."""
    out = files["t.tsv"].parent / "fuzz.json"
    out.unlink(missing_ok=True)
    partial = ["--partial"] * (partial and benchmark not in ("retrieval", "zeroshot"))
    start = time.process_time()
    status = cli.main([*files.arguments(benchmark), "--json", str(out), *partial])
    seconds = time.process_time() - start
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


def rows_of(files, name, key=None):
    """The records of a file, by a plain reading."""
    data = files[name].read_bytes()
    text = data.decode("utf-16" if data.startswith(b"\xff\xfe") else "utf-8-sig")
    if name.endswith(".txt"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    if name.endswith(".tsv"):
        head, *rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        return [dict(zip(head, row, strict=True)) for row in rows if row]
    try:
        value = json.loads(text)
    except ValueError:
        value = [json.loads(line) for line in text.split("\n") if line.strip()]
    value = value[key] if key and isinstance(value, dict) else value
    return value if isinstance(value, list) else [value]


def text_of(name, rows):
    if name.endswith(".tsv"):
        return tabs([rows[0], *map(dict.values, rows)]) if rows else "index\tprediction"
    if name in ("labels.json", "pope.jsonl"):
        return lines(rows)
    return "\n".join(rows) if name.endswith(".txt") else json.dumps(rows)


def clean(files, benchmark):
    """Write every file of a command anew: the fields that count of the rows that both sides share."""

    def keep(name, key, ids, fields=(), part=None):
        rows = [
            row
            for row in rows_of(files, name, part)
            if (int(row[key]) if name.endswith(".tsv") else row[key]) in ids
        ]
        rows = [{f: row[f] for f in fields if f in row} for row in rows] if fields else rows
        return rows if part else files.write(name, text_of(name, rows))

    *first, answers = (rows_of(files, name) for name in GIVEN[benchmark])
    if benchmark == "zeroshot":
        files.write("names.txt", text_of("names.txt", answers))
    elif benchmark == "captions":
        sides = {"id": rows_of(files, "refs.json", "images"), "image_id": answers}
        ids = {row["image_id"] for row in rows_of(files, "refs.json", "annotations")}
        for key, rows in sides.items():
            ids &= {row[key] for row in rows}
        images = keep("refs.json", "id", ids, ("id", "file_name"), "images")
        notes = keep("refs.json", "image_id", ids, ("image_id", "caption"), "annotations")
        files.write("refs.json", {"images": images, "annotations": notes})
        keep("captions.json", "image_id", ids, ("image_id", "caption"))
    elif benchmark == "vqa":
        questions = rows_of(files, "q.json", "questions")
        ids = {row["question_id"] for row in questions} & {row["question_id"] for row in answers}
        for name, part, *fields in (
            ("q.json", "questions", "question"),
            ("a.json", "annotations", "question_type", "answer_type", "answers"),
        ):
            files.write(
                name, {part: keep(name, "question_id", ids, ("question_id", *fields), part)}
            )
        keep("vqa.json", "question_id", ids, ("question_id", "answer"))
    elif benchmark == "pope":
        ids = {row["question_id"] for row in first[0]} & {row["question_id"] for row in answers}
        for name in GIVEN["pope"]:
            keep(name, "question_id", ids)
    else:
        indices, answered = ([int(row["index"]) for row in rows] for rows in (first[0], answers))
        cut = {index % M for index in indices if index not in answered}
        ids = {index for index in indices if index % M not in cut}
        for name in GIVEN["mmbench"]:
            keep(name, "index", ids)


def recalls(path):
    """R@1, 5 and 10 both ways, counted one query at a time."""
    arrays = np.load(path)
    images, texts = (
        (a := arrays[f"{name}_embeds"].astype(np.float64))
        / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
        for name in ("image", "text")
    )
    owner, near = arrays["image_of_text"].astype(int), images @ texts.T
    found = {}
    for way, table, right in (
        ("image_to_text", near, owner == np.arange(len(images))[:, None]),
        ("text_to_image", near.T, owner[:, None] == np.arange(len(images))),
    ):
        ranks = [
            ((row >= row[own].max()) & ~own).sum() for row, own in zip(table, right, strict=True)
        ]
        found[way] = {f"R@{k}": float(np.mean(np.array(ranks) < k)) for k in (1, 5, 10)}
    return found


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


def mutate(files, benchmark, rng):
    """Damage one file of the command, and return its name."""
    *others, answers = GIVEN[benchmark]
    name, kind = rng.choice([*others, answers, answers]), rng.random()
    path = files[name]
    if name == "e.npz" and kind < 0.6:
        damage_arrays(path, rng)
    elif name == answers and others and kind < 0.35:  # rows out, in another order
        rows = rows_of(files, name)
        files.write(name, text_of(name, rng.sample(rows, rng.randrange(len(rows) + 1))))
    elif name.endswith((".json", ".jsonl")) and kind < 0.7:
        lines = name in ("labels.json", "pope.jsonl")
        text = path.read_text("utf-8")
        value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        change_somewhere(value, rng)
        path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value), "utf-8")
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    return name


def check(files, benchmark, capsys, count):
    whole = {name: files[name].read_bytes() for name in GIVEN[benchmark]}
    outcomes = {0: 0, 2: 0}
    for k in range(count):
        rng = random.Random(f"{SEED} {benchmark} {k}")
        for name, content in whole.items():
            files[name].write_bytes(content)
        name = mutate(files, benchmark, rng)
        label = f"VLM_LITE_FUZZ_SEED={SEED}, mutation {k} of {benchmark}, in {name}"
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
        if benchmark == "retrieval":
            right = recalls(files["e.npz"])
            assert {way: pytest.approx(found[way]) for way in right} == right, label
            continue
        clean(files, benchmark)
        again = score(files, benchmark, capsys, partial=False)
        assert again[0] == 0 and without_counts(again[2]) == without_counts(found), label
    return outcomes


@pytest.mark.parametrize("benchmark", GIVEN)
def test_fifty_damaged_files_end_in_an_error_or_in_the_right_score(files, benchmark, capsys):
    outcomes = check(files, benchmark, capsys, 50)
    print(f"VLM_LITE_FUZZ_SEED={SEED} {benchmark}: {outcomes}")
    assert outcomes[0] and outcomes[2]


@pytest.mark.soak
@pytest.mark.parametrize("benchmark", GIVEN)
def test_five_hundred_damaged_files_do_too(files, benchmark, capsys):
    global SEED
    if "VLM_LITE_FUZZ_SEED" not in os.environ:
        SEED = random.SystemRandom().randrange(1, 2**31)
    print(f"VLM_LITE_FUZZ_SEED={SEED} {benchmark}: {check(files, benchmark, capsys, 500)}")
