"""Notebook 05's metrics against the official code, on random captions, and the benchmarks made of Shapes."""

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from vlm_lite.data.shapes import load_shapes
from vlm_lite.evals import captions
from vlm_lite.files import UserError
from vlm_lite.lessons import benchmarks, mmbench, pope
from vlm_lite.lessons import evaluation as lesson

WORDS = "a red blue star in the top left".split()


@pytest.fixture(scope="module")
def table():
    return load_shapes("val", 64, progress=False)[0]


def some_captions(seed, count, repeats=True):
    draw = random.Random(seed)
    return [draw.choices(WORDS, k=draw.randint(3, 12)) for _ in range(count)]


def test_bleu_rouge_and_cider_are_pycocoevalcap_s():
    said = some_captions(0, 12)
    refs = [some_captions(k + 1, 1 + k % 4) for k in range(12)]
    theirs = captions.caption_scores(
        {k: [" ".join(r) for r in each] for k, each in enumerate(refs)},
        {k: " ".join(each) for k, each in enumerate(said)},
        ("BLEU", "ROUGE_L", "CIDEr"),
        "whitespace",
    )
    rouge = np.mean([lesson.rouge_l(*pair) for pair in zip(said, refs, strict=True)])
    mine = [*lesson.bleu(said, refs), rouge, lesson.cider(said, refs)]
    names = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")
    assert mine == pytest.approx(
        [theirs[name] for name in names], abs=1e-4
    )  # their BLEU adds 1e-15 to nothing


def test_meteor_s_matches_and_chunks_are_those_of_the_official_jar_with_exact_matching():
    try:
        java = captions.find_java()
    except UserError:
        pytest.skip("the official METEOR needs Java")
    import pycocoevalcap.meteor.meteor as official

    pairs = list(zip(some_captions(7, 40), some_captions(8, 40), strict=True))
    lines = "".join(f"SCORE ||| {' '.join(r)} ||| {' '.join(c)}\n" for c, r in pairs)
    jar = Path(official.__file__).with_name("meteor-1.5.jar")
    command = [str(java), *captions.ENGLISH, "-Xmx1G", "-jar", str(jar), "-", "-", "-stdio"]
    found = subprocess.run(
        [*command, "-l", "en", "-m", "exact"],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
    )
    for (candidate, reference), line in zip(pairs, found.stdout.splitlines(), strict=True):
        numbers = [float(x) for x in line.split()]
        matches, chunks = lesson.meteor_alignment(candidate, reference)
        assert numbers[:2] == [len(candidate), len(reference)]
        # then function words, content and function words matched a stage, ..., chunks
        assert (matches, chunks) == (numbers[4] + numbers[6], numbers[-3])


def test_the_clustered_interval_is_scipy_s_bootstrap_over_images():
    sizes = torch.randint(1, 8, (60,), generator=torch.Generator().manual_seed(0))
    clusters = torch.arange(60).repeat_interleave(sizes)
    scores = torch.rand(60, generator=torch.Generator().manual_seed(1))[clusters]
    _, low, high = lesson.interval(scores, [{"image_id": int(c)} for c in clusters])
    sums = torch.zeros(60).index_add(0, clusters, scores).numpy()

    def mean(sums, sizes, axis):
        return sums.sum(axis) / sizes.sum(axis)

    theirs = bootstrap(
        (sums, sizes.numpy()), mean, paired=True, vectorized=True, method="percentile", rng=0
    )
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)


def test_pope_and_mmbench_are_files_of_their_formats_with_the_truth_of_the_scenes(table, tmp_path):
    for split in ("random", "popular", "adversarial"):
        rows = benchmarks.write_pope(tmp_path / split, table, split, 20)
        said = [{"question_id": k, "answer": row["answer"]} for k, row in enumerate(rows, 1)]
        (tmp_path / "said").write_text("\n".join(map(benchmarks.json.dumps, said)))
        texts, labels, _ = pope.read_pope(tmp_path / split, tmp_path / "said")
        assert texts == labels and labels.count("yes") == labels.count("no") > 20
        for row in rows:
            kind = row["question"].removeprefix("Is there a ").removesuffix(" in the image?")
            assert (kind in row["description"]) == (row["answer"] == "yes")
    questions = load_shapes("val", 64, progress=False)[1].remove_columns("image").to_list()
    dark = torch.zeros(3, 64, 64, dtype=torch.uint8)
    sheet, asked = benchmarks.write_choices(tmp_path / "x.tsv", questions, lambda _: dark, 2)
    right = {row["index"]: row["answer"] for row in sheet}
    assert mmbench.mmbench_scores(sheet, right)["circular"] == 1 and len(asked) == len(sheet)


def test_relatives_differ_in_one_word_and_in_their_image():
    images, texts, kinds = benchmarks.one_word_apart(3, 12)
    for start in range(0, 36, 12):
        assert len({images[k].numpy().tobytes() for k in range(start, start + 12)}) == 12
        first = texts[start].split()
        for k in range(start + 1, start + 12):
            assert sum(a != b for a, b in zip(first, texts[k].split(), strict=True)) == 1
            assert kinds[k] in ("shape", "colour", "size", "value")


def test_level_and_more_questions_have_the_answers_of_the_scenes(table):
    level = benchmarks.level_questions(table, 50)
    assert len(level) == 50 and {row["answer"] for row in level} == {"no"}
    assert all(map(benchmarks.is_level, level))
    for row in benchmarks.more_questions(table, 40):
        one, other = (row["question"].split()[k].strip("?").removesuffix("s") for k in (3, 5))
        one, other = (word.removesuffix("e") if word == "crosse" else word for word in (one, other))
        shapes = [item.shape for item in benchmarks.read_boxes(row["description"]).items]
        assert (shapes.count(one) > shapes.count(other)) == (row["answer"] == "yes")
