"""`vlm-lite eval ...` on damaged files: a clean error, or the right score of the rows that were kept.

A mutation puts something odd, nothing or a copy into one place of a JSON file, takes rows out of the answers, or damages
bytes, of any file of the command. Of the benchmarks whose files are joined by `question_id`, a score that comes out is
that of clean files with the rows which a plain reading by `json` finds and which all of them share.
VLM_LITE_FUZZ_SEED repeats a run.
"""

import json
import math
import os
import random
import re
import time

import pytest

from tests.evals.official import OWNERS, lines
from vlm_lite import cli

# `make test` damages the same files each time, so that it says the same of the same code; `make soak` others each time.
SEED = int(os.environ.get("VLM_LITE_FUZZ_SEED", 0)) or 1
# the files of each command; the last is the one that answers
GIVEN = {b: [name for name in OWNERS if OWNERS[name] == b] for b in dict.fromkeys(OWNERS.values())}
JOINED = {"vqa": ("questions", "annotations", None), "pope": (None, None)}  # where the rows are
ODD = [None, True, -1, 1.5, math.nan, math.inf, 2**70, "", "\ud800", "x" * 5000]
ODD += [[], {}, [[]], {"a": 1}]


def score(files, benchmark, capsys, *partial):
    """(status, what was said, the JSON as text, without its counts) of one run in this process."""
    out = files["t.tsv"].parent / "fuzz.json"
    out.unlink(missing_ok=True)
    status = cli.main([*files.arguments(benchmark), "--json", str(out), *partial])
    found = out.read_text("utf-8") if out.exists() else ""
    said = re.sub("^note: .*\n", "", capsys.readouterr().err, flags=re.M)
    return status, said, re.sub(r'"(missing|unknown|labels)": [^,}]*', "", found)


def rows_of(files, name, key=None):
    """The records of a file, by a plain reading."""
    text = files[name].read_text("utf-8-sig")
    try:
        value = json.loads(text)
    except ValueError:
        value = [json.loads(line) for line in text.split("\n") if line.strip()]
    value = value[key] if key and isinstance(value, dict) else value
    return value if isinstance(value, list) else [value]


def clean(files, benchmark):
    """Write every file of a command anew, with the rows whose question is in all of them."""
    parts = dict(zip(GIVEN[benchmark], JOINED[benchmark], strict=True))
    rows = {name: rows_of(files, name, key) for name, key in parts.items()}
    ids = set.intersection(*({row["question_id"] for row in each} for each in rows.values()))
    for name, key in parts.items():
        kept = [row for row in rows[name] if row["question_id"] in ids]
        files.write(name, {key: kept} if key else lines(kept))


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


def mutate(files, benchmark, rng):
    """Damage one file of the command, and return its name."""
    *others, answers = GIVEN[benchmark]
    name, kind = rng.choice([*others, answers, answers]), rng.random()
    path = files[name]
    if name == answers and benchmark in JOINED and kind < 0.35:  # rows out, in another order
        rows = rows_of(files, name)
        files.write(name, lines(rng.sample(rows, rng.randrange(1, len(rows) + 1))))
    elif name.endswith((".json", ".jsonl")) and kind < 0.7:
        is_lines = name in ("labels.json", "pope.jsonl")
        value = rows_of(files, name) if is_lines else json.loads(path.read_text("utf-8"))
        change_somewhere(value, rng)
        path.write_text(lines(value) if is_lines else json.dumps(value), "utf-8")
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    return name


def check(files, benchmark, capsys, count):
    whole = {name: files[name].read_bytes() for name in GIVEN[benchmark]}
    partial = ["--partial"] if benchmark not in ("retrieval", "zeroshot") else []
    outcomes = {0: 0, 2: 0}
    for k in range(count):
        rng = random.Random(f"{SEED} {benchmark} {k}")
        for name, content in whole.items():
            files[name].write_bytes(content)
        name, start = mutate(files, benchmark, rng), time.process_time()
        label = f"VLM_LITE_FUZZ_SEED={SEED}, mutation {k} of {benchmark}, in {name}"
        status, said, found = score(files, benchmark, capsys, *partial)
        assert status in outcomes and time.process_time() - start < 10, label
        outcomes[status] += 1
        if status == 2:
            label += f": {said[:900]}"
            assert not found and len(said) < 600 and said.count("\n") == 1, label
            assert any(str(files[n]) in said for n in GIVEN[benchmark]), label
        else:
            assert found and not re.search("NaN|Infinity", found), label
            if benchmark in JOINED:
                clean(files, benchmark)
                assert score(files, benchmark, capsys)[::2] == (0, found), label
    return outcomes


@pytest.mark.parametrize("benchmark", GIVEN)
@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.soak)])
def test_damaged_files_end_in_an_error_or_in_the_right_score(
    files, benchmark, count, capsys, monkeypatch
):
    if count == 500 and "VLM_LITE_FUZZ_SEED" not in os.environ:
        monkeypatch.setitem(globals(), "SEED", random.SystemRandom().randrange(1, 2**31))
    outcomes = check(files, benchmark, capsys, count)
    print(f"VLM_LITE_FUZZ_SEED={SEED} {benchmark}: {outcomes}")
    assert outcomes[2] and (outcomes[0] or benchmark == "retrieval")
