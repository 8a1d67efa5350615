"""`vlm-lite eval ...` on damaged files: a clean error, or the right score of the rows that were kept.

A mutation puts something odd, nothing or a copy into one place of a JSON file, takes rows out of the answers, exchanges
an array, or damages bytes, of any file of the command. A score that comes out is that of clean files with the rows which
a plain reading by `json`, `csv` or numpy finds and which all files share.
VLM_LITE_FUZZ_SEED repeats a run.
"""

import csv
import io
import json
import math
import os
import random
import re
import time

import numpy as np
import pytest

from tests.evals.official import OWNERS, M, lines, save_embeddings, tabs
from vlm_lite import cli

# `make test` damages the same files each time, so that it says the same of the same code; `make soak` others each time.
SEED = int(os.environ.get("VLM_LITE_FUZZ_SEED", 0)) or 1
# the files of each command; the last is the one that answers
GIVEN = {b: [name for name in OWNERS if OWNERS[name] == b] for b in dict.fromkeys(OWNERS.values())}
VQA_FIELDS = {
    "q.json": ("questions", "question_id", "question"),
    "a.json": ("annotations", "question_id", "question_type", "answer_type", "answers"),
    "vqa.json": (None, "question_id", "answer"),
}
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
    data = files[name].read_bytes()
    text = data.decode("utf-16" if data.startswith(b"\xff\xfe") else "utf-8-sig")
    if name.endswith(".txt"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    if name.endswith(".tsv"):
        head, *rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        rows = [dict(zip(head, row, strict=True)) for row in rows if row]
        return [{**row, "index": int(row["index"])} for row in rows]
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
    """Write every file of a command anew: the fields that count of the rows that all of them share."""

    def kept(name, key, ids, part=None, fields=()):
        rows = [row for row in rows_of(files, name, part) if row[key] in ids]
        return [{f: row[f] for f in fields or row if f in row} for row in rows]

    def ids_of(name, key, part=None):
        return {row[key] for row in rows_of(files, name, part)}

    names = GIVEN[benchmark]
    if benchmark == "retrieval":
        with np.load(files["e.npz"]) as arrays:
            save_embeddings(files["e.npz"], **arrays)
    elif benchmark == "zeroshot":
        files.write("names.txt", text_of("names.txt", rows_of(files, "names.txt")))
    elif benchmark == "captions":
        ids = ids_of("refs.json", "id", "images") & ids_of("captions.json", "image_id")
        ids &= ids_of("refs.json", "image_id", "annotations")
        images = kept("refs.json", "id", ids, "images", ("id", "file_name"))
        fields = ("image_id", "caption")
        notes = kept("refs.json", "image_id", ids, "annotations", fields)
        files.write("refs.json", {"images": images, "annotations": notes})
        files.write("captions.json", kept("captions.json", "image_id", ids, None, fields))
    elif benchmark == "vqa":
        ids = ids_of("q.json", "question_id", "questions") & ids_of("vqa.json", "question_id")
        for name, (part, *fields) in VQA_FIELDS.items():
            rows = kept(name, "question_id", ids, part, fields)
            files.write(name, {part: rows} if part else rows)
    elif benchmark == "pope":
        ids = set.intersection(*(ids_of(name, "question_id") for name in names))
        for name in names:
            files.write(name, lines(kept(name, "question_id", ids)))
    else:  # a question of MMBench counts where all its rotations are answered
        indices, answered = (ids_of(name, "index") for name in names)
        cut = {index % M for index in indices - answered}
        ids = {index for index in indices if index % M not in cut}
        for name in names:
            files.write(name, text_of(name, kept(name, "index", ids)))


def recalls(path):
    """What the command should write of a file of embeddings: wrong partners at least as near, counted one by one."""
    with np.load(path) as arrays:
        images, texts = (arrays[n].astype(np.float64) for n in ("image_embeds", "text_embeds"))
        own = arrays["image_of_text"].astype(int)
    images, texts = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (images, texts)
    )
    near = np.round(images @ texts.T, 6)
    best = [near[i, own == i].max() for i in range(len(images))]
    before = {
        "image_to_text": [(near[i, own != i] >= best[i]).sum() for i in range(len(images))],
        "text_to_image": [
            (np.delete(near[:, j], i) >= near[i, j]).sum() for j, i in enumerate(own)
        ],
    }
    return {
        way: {f"R@{k}": float(np.mean(np.array(ranks) < k)) for k in (1, 5, 10)}
        for way, ranks in before.items()
    }


def change_array(path, rng):
    """Exchange one array of the embeddings: other numbers, another type, another shape, or none."""
    with np.load(path) as arrays:
        arrays = dict(arrays)
    name = rng.choice(list(arrays))
    value, noise = arrays[name], np.random.default_rng(rng.randrange(2**31))
    kind = rng.randrange(8)
    if kind == 0:
        value = value.astype(rng.choice([">f8", ">f4", "i1", "u8", "c8", "S1", "O"]))
    elif kind == 1:
        value = value.astype("f8")
        value[rng.randrange(len(value))] = rng.choice([math.nan, math.inf, 0, -1, 1e308])
    elif kind == 2:
        value = rng.choice([value[:-1], value[:0], value[None], value.T, None])
    elif kind == 3:
        value = noise.permutation(value)
    elif value.ndim == 2:
        value = noise.normal(size=value.shape).astype(rng.choice(["f2", "f4", "f8", ">f8"]))
    else:
        value = noise.permutation(value).astype(rng.choice(["i4", ">i8", "u2"]))
    save_embeddings(path, **{**arrays, name: value})


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
    if benchmark == "retrieval" and kind < 0.7:
        change_array(path, rng)
    elif name == answers and others and kind < 0.35:  # rows out, in another order
        rows = rows_of(files, name)
        files.write(name, text_of(name, rng.sample(rows, rng.randrange(len(rows) + 1))))
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
            if benchmark == "retrieval":
                right = recalls(files["e.npz"])
                assert {way: json.loads(found)[way] for way in right} == right, label
            clean(files, benchmark)
            assert score(files, benchmark, capsys)[::2] == (0, found), label
    return outcomes


@pytest.mark.parametrize("benchmark", GIVEN)
@pytest.mark.parametrize(
    "count", [pytest.param(50, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.soak)]
)
def test_damaged_files_end_in_an_error_or_in_the_right_score(
    files, benchmark, count, capsys, monkeypatch
):
    if count == 500 and "VLM_LITE_FUZZ_SEED" not in os.environ:
        monkeypatch.setitem(globals(), "SEED", random.SystemRandom().randrange(1, 2**31))
    outcomes = check(files, benchmark, capsys, count)
    print(f"VLM_LITE_FUZZ_SEED={SEED} {benchmark}: {outcomes}")
    assert outcomes[0] and outcomes[2]
