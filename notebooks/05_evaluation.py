# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     provenance: []
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   vlm_lite:
#     title: Evaluation
#     builds: each metric of the field by hand, the controls beside it, and a model's failures as findings
#     lesson: evaluation
#     reads: [zoo/shapes-vlm, zoo/shapes-clip, zoo/shapes-gpt2]
#     outputs_of: dfc0238725db85d2c150eda28949a0184033398c204846ea6e8729a2e5b90878
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/05_evaluation.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/05_evaluation.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny"]

import importlib.metadata
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vlm_lite") is None:
    # Naming what is installed keeps pip from changing it.
    kept = [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("torch", "torchvision", "numpy", "transformers")
        if importlib.util.find_spec(name)
    ]
    source = "git+https://github.com/vlm-lite/vlm-lite@main"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *kept, source])

from vlm_lite.profiles import describe, get_compute, get_profile

profile, compute = get_profile(default=profile, offers=("tiny", "smoke")), get_compute()
print(describe(profile, compute, notebook="05_evaluation"))

# %% [markdown]
# # 5. Evaluation
#
# A model scores 70%. The metric may count "Yes" as wrong where "yes" is right; a model that never saw the image
# may reach half of it; and what is missing may all be of one kind.
#
# **You will build** each metric by hand, equal to the official code: VQA accuracy, BLEU, ROUGE-L, METEOR's alignment, CIDEr,
# POPE, MMBench, and an interval that knows which questions share an image.
#
# **You will be able to show** what fools each metric, what a model earns without looking, and five kinds of failure.
#
# **Reading time:** 25 minutes. Six exercises, 52 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 1 min (0.5 with bf16) and 2.2 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [00](00_start_here.ipynb), which asks this model its first questions. It is the shipped `shapes-vlm`, a
# frozen CLIP and a frozen language model joined by a Q-Former ([03](03_qformer_gpt2.ipynb)); nothing is trained here.

# %% tags=["hide"] cellView="form"
# @title One question under five conditions
import pandas as pd
from IPython.display import display

from vlm_lite import plots
from vlm_lite.data import shapes
from vlm_lite.encoded import patch_features
from vlm_lite.evals import captions, probes
from vlm_lite.files import home
from vlm_lite.labs import check
from vlm_lite.lessons import benchmarks, controls, language, mmbench, pope, vqa
from vlm_lite.models.vlm import load_vlm

plots.style()
vlm = load_vlm("shapes-vlm")
table, questions = shapes.load_shapes("val", profile.val_images, progress=False)
ask = benchmarks.Asker(vlm, table, patch_features)
every, conditions = questions.remove_columns("image").to_list(), ("blind", *ask.seen, "oracle")
rows, relation = every[:500], benchmarks.of_type(every, "relation", 200)
answers = {name: ask(rows, name) for name in conditions}


def claim(*facts):  # what the text says holds at full size
    assert profile.name == "smoke" or all(facts), facts


first, at = relation[:1], ask.number[relation[0]["image_id"]]
said = {name: ask(first, name)[0] for name in conditions}
print(f"{first[0]['question']} (right: {first[0]['answer']}; blind: {said['blind']})")
plots.show_images([x[at] for x in ask.seen.values()], [f"{c}: {said[c]}" for c in ask.seen])

# %% [markdown]
# ## 1. VQA accuracy
#
# Ten people $a_1 \dots a_{10}$ answered each question of VQA v2. (For Shapes nobody was asked: a rule makes the ten, and
# sometimes writes "big" for "large".) The official code leaves each person out in turn, and asks for three others who agree:
#
# $$ \mathrm{acc}(\hat a) = \frac{1}{10} \sum_{k=1}^{10} \min\!\left(1,\ \tfrac{1}{3}\,\big|\{\,j \neq k : a_j = \hat a\,\}\big|\right) $$
#
# Papers often print a short formula instead, $\min(1, n/3)$ for $n$ people who agree.
#
# **Exercise 1: VQA accuracy.** ★☆☆ 6 minutes. Compare the texts as they stand.
# <details><summary>Hint</summary>
#
# `others = answers[:k] + answers[k + 1:]`, and a list has `.count(value)`.
# </details>

# %% tags=["save"]
import math
import string
from collections import Counter
from functools import reduce
from operator import or_

import torch


# %% nbgrader={"grade": false, "grade_id": "vqa_accuracy", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def vqa_accuracy(prediction, answers):
    """A text and the ten people's answers -> accuracy in [0, 1] (Antol et al. 2015, official code)."""
    ### BEGIN SOLUTION
    left_out = [answers[:k] + answers[k + 1 :] for k in range(len(answers))]
    return sum(min(1, others.count(prediction) / 3) for others in left_out) / len(answers)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "vqa_accuracy-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
vqa_accuracy = check.vqa_accuracy(vqa_accuracy)

# %% [markdown]
# **Normalisation moves scores.** The official code makes texts alike before it compares: lower case, no punctuation, no articles,
# "two" becomes "2". But **only where the ten people don't all agree**. Many tools do it always, and report a higher
# number under the same name.
#
# **Predict first:** ten people say `yes`, the model says `Yes`. What is its official score, in percent?

# %%
my_guess = 100  # percent

official = [vqa_accuracy("red", ["red"] * n + ["pink"] * (10 - n)) for n in range(6)]
display(
    pd.DataFrame({"official": official, "short formula": [0, 1 / 3, 2 / 3, 1, 1, 1]}).T.round(2)
)
assert round(official[3], 2) == 0.9


def by_hand(prediction, people):
    if len(set(people)) > 1:
        prediction, *people = map(vqa.normalize_answer, [prediction, *people])
    return vqa_accuracy(prediction, people)


said = answers["vlm"]
mine = [by_hand(each, row["answers"]) for each, row in zip(said, rows, strict=True)]
assert max(abs(vqa.vqa_scores(said, rows) - mine)) < 1e-9
print(f"you guessed {my_guess}%; it is {100 * by_hand('Yes', ['yes'] * 10):.0f}%")
styles = {"as said": said, "Capitalised": [each.title() for each in said]}
scored = {n: {k: vqa.score_vqa(a, rows, n) for k, a in styles.items()} for n in vqa.NORMALIZE}
pd.DataFrame(scored).map(lambda found: round(found["overall"], 1))

# %% [markdown]
# Three matches earn 0.9 officially and 1.0 by the short formula. **This course uses the official leave-one-out with the official
# normalisation.** A capital letter alone costs most of the score there, and nothing where a tool always normalises. So say which
# rule a number used.
#
# ## 2. Captions: BLEU
#
# **BLEU** (Papineni et al. 2002) asks how many of the candidate's $n$-grams stand in a reference. A caption could
# repeat one word; so an $n$-gram counts at most as often as in the *one* reference that has it most (*clipping*).
# A caption of one word would be precise; so short candidates pay a *brevity penalty*, with $c$ words said and $r$ in the references
# (for each caption the reference nearest in length):
#
# $$ p_n = \frac{\sum_{\text{captions}} \sum_{g} \min\big(\mathrm{count}(g),\ \max_{\mathrm{ref}} \mathrm{count}_{\mathrm{ref}}(g)\big)}{\sum_{\text{captions}} \sum_g \mathrm{count}(g)}
# \qquad \mathrm{BLEU}_n = \min\big(1, e^{1 - r/c}\big) \, (p_1 \cdots p_n)^{1/n} $$
#
# The sums run over all captions *before* the division.
#
# **Exercise 2: BLEU.** ★★★ 15 minutes. `ngrams(words, n)` counts the $n$-grams of a list of words.
# <details><summary>Hint</summary>
#
# `a | b` keeps the larger count of each, `a & b` the smaller, and `.total()` adds up. `min((abs(len(r) - len(c)), len(r)) for r in refs)`
# finds the nearest length, the shorter of two equally near.
# </details>


# %% nbgrader={"grade": false, "grade_id": "bleu", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def ngrams(words, n):
    """A list of words -> Counter of its n-grams."""
    return Counter(zip(*(words[k:] for k in range(n)), strict=False))


def bleu(candidates, references):
    """N captions and N lists of captions, as lists of words -> [BLEU-1, BLEU-2, BLEU-3, BLEU-4]."""
    ### BEGIN SOLUTION
    pairs = list(zip(candidates, references, strict=True))
    said = sum(map(len, candidates))
    wanted = sum(min((abs(len(r) - len(c)), len(r)) for r in refs)[1] for c, refs in pairs)
    scores, product = [], 1.0
    for n in range(1, 5):
        most = [reduce(or_, (ngrams(r, n) for r in refs)) for refs in references]
        matched = sum((ngrams(c, n) & top).total() for c, top in zip(candidates, most, strict=True))
        product *= matched / max(1, sum(ngrams(c, n).total() for c in candidates))
        scores.append(min(1.0, math.exp(1 - wanted / max(1, said))) * product ** (1 / n))
    return scores
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "bleu-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
bleu = check.bleu(bleu)

# %% [markdown]
# ## 3. ROUGE-L, METEOR, CIDEr, SPICE
#
# **ROUGE-L** (Lin 2004) needs no fixed $n$: it takes the longest common subsequence, words in the same order with gaps
# allowed. With $\ell$ its length, $P = \max_{\mathrm{ref}} \ell / c$ and $R = \max_{\mathrm{ref}} \ell / r$, and $\beta = 1.2$:
# $\ F = (1 + \beta^2) P R \,/\, (R + \beta^2 P)$.
#
# **Exercise 3: ROUGE-L.** ★★☆ 9 minutes. One caption against its references.
# <details><summary>Hint</summary>
#
# For the subsequence keep one row: `row[k]` is the length for the first k words of the reference. A new word makes a new row:
# `old[k] + 1` where the words agree, else the larger of `row[k]` and `old[k + 1]`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "rouge_l", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def rouge_l(candidate, references):
    """A list of words and a list of such lists -> ROUGE-L's F as COCO's code has it (beta 1.2)."""
    ### BEGIN SOLUTION
    precision = recall = 0.0
    for reference in references:
        row = [0] * (len(reference) + 1)
        for word in candidate:
            old, row = row, [0]
            for k, other in enumerate(reference):
                row.append(old[k] + 1 if word == other else max(row[k], old[k + 1]))
        precision = max(precision, row[-1] / len(candidate))
        recall = max(recall, row[-1] / len(reference))
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "rouge_l-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
rouge_l = check.rouge_l(rouge_l)

# %% [markdown]
# **METEOR** (Banerjee and Lavie 2005) *aligns*: each word of the candidate with at most one equal word of the reference, as
# many as possible, $m$, in as few *chunks* (runs that stand together in both) as possible, $k$. It weighs recall nine times and
# charges for disorder: $\ F = 10PR / (R + 9P)$, times $1 - 0.5\,(k/m)^3$. The tool of COCO's evaluation, METEOR 1.5, aligns stems, synonyms and
# paraphrases too, and runs on Java; ours is the exact-match form. A test finds the official tool's own $m$ and $k$ with only
# exact matches switched on.
#
# **CIDEr** (Vedantam et al. 2015) asks which words *tell something*: an $n$-gram weighs $\log(N / \text{images whose references
# have it})$, so "a" weighs nothing. Score: the mean cosine of the weighted counts over references and $n = 1 \dots 4$, clipped, less for another length
# (CIDEr-D). **One scale here:** times 100, as papers print it, where 1,000 is the end. On COCO, ClipCap has 113.1 and BLEU-4 33.5,
# BLIP-2 CIDEr 145.8; Shapes' small grammar gives far more.


# %% tags=["save"]
def words_of(text):  # the official tokeniser, PTB, runs on Java
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()


def meteor_alignment(candidate, reference, beam=40):
    """Two lists of words -> (m, k): exact matches, one to one, and the chunks they lie in."""
    states = [(0, 0, -9, 0)]  # matches, minus chunks, the last word matched, those used (as bits)
    for word in candidate:
        after = {(m, k, -9, used) for m, k, _, used in states}
        for j in (j for j, other in enumerate(reference) if other == word):
            free = [state for state in states if not state[3] >> j & 1]
            after |= {(m + 1, k - (j != i + 1), j, used | 1 << j) for m, k, i, used in free}
        states = sorted(after, reverse=True)[:beam]
    return states[0][0], -states[0][1]


def meteor(candidate, references):
    """A list of words and a list of such lists -> METEOR of 2005 with exact matches; the best reference counts."""
    scores = [0.0]
    for reference in references:
        m, k = meteor_alignment(candidate, reference)
        p, r = m / max(1, len(candidate)), m / len(reference)
        scores.append(10 * p * r / (r + 9 * p) * (1 - 0.5 * (k / m) ** 3) if m else 0.0)
    return max(scores)


def cider(candidates, references):
    """N captions and N lists of captions, as lists of words -> CIDEr-D (0 to 10)."""
    total, N = 0.0, len(references)
    for n in range(1, 5):
        have = Counter(g for refs in references for g in {g for r in refs for g in ngrams(r, n)})

        def vector(words, n=n, have=have):
            return {g: k * math.log(N / max(1, have[g])) for g, k in ngrams(words, n).items()}

        for c, refs in zip(candidates, references, strict=True):
            for r in refs:
                a, b, apart = vector(c), vector(r), math.exp(-((len(c) - len(r)) ** 2) / 72)
                dot = sum(min(a[g], b[g]) * b[g] for g in a.keys() & b.keys())
                norms = math.hypot(*a.values()) * math.hypot(*b.values())
                total += dot / max(norms, 1e-12) * apart / len(refs)
    return 10 * total / 4 / N


# %% [markdown]
# **Fool them.** Fifty images get a caption of each kind. The references are four captions that none copies.
# **Predict first:** what BLEU-1 has a perfect caption of *another* image, in percent?

# %%
my_guess = 20  # percent

references, features = table["captions"][:50], ask.features["vlm"][:50]
kinds, caption = benchmarks.fooling_captions(references), [language.CAPTION_PROMPT]
kinds["the VLM's"] = vlm.generate(features, caption * len(features), max_new_tokens=48)
kinds["blind, one for all"] = vlm.generate(None, caption, max_new_tokens=48) * len(features)
rest = {k: five[1:] for k, five in enumerate(references)}
refs = [[words_of(text) for text in four] for four in rest.values()]
fooled = pd.DataFrame(columns=["BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR"], dtype=float)
for name, texts in kinds.items():
    said, given = [words_of(text) for text in texts], dict(enumerate(texts))
    rouge, aligned = (sum(map(f, said, refs)) / len(refs) for f in (rouge_l, meteor))
    fooled.loc[name] = *bleu(said, refs)[::3], rouge, cider(said, refs), aligned
    library = captions.caption_scores(rest, given, ("BLEU", "ROUGE_L", "CIDEr"), "whitespace")
    library = torch.tensor([library[key] for key in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr")])
    assert abs(library - torch.tensor(fooled.loc[name].tolist())[:4]).max() < 1e-4
s, brief = fooled.T, fooled.loc["true, one object only"]
claim((s["one colour wrong"] > brief).all(), (s["of the next"] / s["true"]).idxmin() == "CIDEr")
ahead = s["blind, one for all"] - brief
claim(ahead["ROUGE-L"] > -0.05, ahead["METEOR"] > 0.1)
display(pd.DataFrame({"first caption": {name: texts[0] for name, texts in kinds.items()}}))
print(f"times 100; you guessed {my_guess}; by hand = pycocoevalcap, METEOR apart")
(100 * fooled).round(1)

# %% [markdown]
# | metric | rewards | what fools it, in the table |
# |---|---|---|
# | BLEU-1 | words | *its words sorted* loses nothing |
# | BLEU-4 | runs of four words | *one colour wrong* is false, and beats the true *one object only* |
# | ROUGE-L | words in one order | *blind, one for all* earns what the true *one object only* does |
# | METEOR | recall, few chunks | *blind, one for all* beats *one object only* |
# | CIDEr | telling $n$-grams | separates images best, and still prefers *one colour wrong* |
# | SPICE | facts | it reads the scene graph only, so not whether the sentence is fluent |
#
# **SPICE** (Anderson et al. 2016) parses captions into a scene graph and takes the F1 of its tuples. "A small red circle
# above a large star": (circle), (star), (circle, small), (circle, red), (star, large), (circle, above, star). With "blue" for
# "red" five of six tuples match: $F_1 = 5/6$. **SPICE has not been run here**: it needs an old Java and a download; `vlm-lite eval captions` runs it
# where both are there.
#
# So **a caption score needs the next image's row beside it**, and CIDEr of two image sets cannot be compared: the weights come from
# the set.

# ## 4. Intervals: questions that share an image
#
# The *bootstrap* resamples the questions with replacement and looks at the spread of the score. But several
# questions about one image fail together when it is misread. So resample
# **images**, each with all its questions.
#
# **Exercise 4: a clustered interval.** ★★☆ 9 minutes. `clusters[q]` is the number of question q's image. Each row of
# `draws` holds C image numbers, some twice. An image with more questions weighs more.
# <details><summary>Hint</summary>
#
# `torch.zeros(C).index_add(0, clusters, scores)` adds up the scores of each image and `torch.bincount` counts its questions. For each draw: the sum of its
# sums over the sum of its counts. Then `quantile(0.025)` and `quantile(0.975)`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "clustered_interval", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def clustered_interval(scores, clusters, draws):
    """scores (Q,), clusters (Q,) from 0 to C - 1, draws (R, C) of clusters -> (low, high), 95%, of the mean score."""
    ### BEGIN SOLUTION
    sums = torch.zeros(draws.shape[1]).index_add(0, clusters, scores.float())  # (C,)
    counts = torch.bincount(clusters, minlength=draws.shape[1])  # (C,)
    means = sums[draws].sum(dim=1) / counts[draws].sum(dim=1)  # (R,)
    return means.quantile(0.025), means.quantile(0.975)
    ### END SOLUTION


def interval(scores, rows):
    """scores (Q,) of rows with an image_id -> (mean, low, high), 2,000 resamples of images."""
    clusters = torch.tensor([row["image_id"] for row in rows]).unique(return_inverse=True)[1]
    C = int(clusters.max()) + 1
    draws = torch.randint(C, (2000, C), generator=torch.Generator().manual_seed(0))
    return scores.float().mean().item(), *map(float, clustered_interval(scores, clusters, draws))


# %% nbgrader={"grade": true, "grade_id": "clustered_interval-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
clustered_interval = check.clustered_interval(clustered_interval)

# %% [markdown]
# **What an unclustered interval gets wrong.** Benchmarks ask about one image in several wordings. Ask 200 relation questions in three
# wordings each. How much narrower does the unclustered interval get?

# %%
asked = benchmarks.reworded(relation, ("?", " in the image?", " in the picture?"))
right, vqa_scores = ask.right(asked), torch.tensor(vqa.vqa_scores(answers["vlm"], rows))
cases = {"500 VQA questions": (vqa_scores, rows), "200 relations": (right[::3], relation)}
widths = pd.DataFrame(columns=["questions", "images", "clustered", "unclustered"])
for name, (each, about) in {**cases, "the same in three wordings": (right, asked)}.items():
    alone = [{"image_id": k} for k in range(len(about))]  # as if each had an image of its own
    half = [50 * (high - low) for _, low, high in (interval(each, about), interval(each, alone))]
    widths.loc[name] = len(about), len({row["image_id"] for row in about}), *half
claim(widths.clustered.iloc[2] > 1.3 * widths.unclustered.iloc[2])
widths.round(1)  # half widths, in points

# %% [markdown]
# With a question or two an image, clustering changes little. In three wordings the unclustered interval is far too narrow, as if 600
# independent questions had been asked. To **compare two models**, pass the *differences* of their scores on the same
# questions: a hard question is hard for both.
#
# ## 5. Does it look? The controls of a score
#
# | control | what is asked | what it tells |
# |---|---|---|
# | **type prior** | the most frequent training answer of each question type | what the type alone is worth |
# | **blind** | the question without image | what the words give away |
# | **blank**, **shuffled** | an empty image, another image | whether it must be *this* image |
# | **patch-shuffled** | this image, its patches in disorder | whether *where* matters |
# | **oracle** | the scene in words | what this language model could know at most |
#
# **Predict first:** with the patches in disorder, every colour, shape, size and digit is still there. What accuracy is left, in percent?

# %% tags=["thumbnail"]
my_guess = 60  # percent, patches in disorder

_, train = shapes.load_shapes("train", profile.val_images, progress=False)
types = [row["question_type"] for row in rows]
prior = controls.type_prior(train["question_type"][:], train["answer"][:], types)
said = {"type prior": prior, **answers}
scores = pd.DataFrame({name: vqa.vqa_scores(each, rows) for name, each in said.items()})
of = {name: torch.tensor(scores[name].to_numpy()) for name in scores}  # (Q,) each
board = {name: probes.Interval(*interval(each, rows)) for name, each in of.items()}
display(plots.controls_bars(board, guess=("patch-shuffled", my_guess), title="VQA, controlled"))
gains = {name: interval(of["vlm"] - of[name], rows) for name in of if name not in ("vlm", "oracle")}
pairs = shapes.find_pairs(*([r[key] for r in rows] for key in ("question", "image_id", "answer")))
by_type = scores.groupby(types).mean()
by_type.loc["pairs"] = [controls.pair_scores(scores[name], pairs).mean() for name in scores]
claim(min(low for _, low, _ in gains.values()) > 0, by_type.blind["pairs"] == 0)
display((100 * by_type).round(0), (100 * pd.DataFrame(gains, ["ahead by", "low", "high"])).round(1))
print("HEADLINE: VQA accuracy", *(f"{c} {board[c].value:.1%}" for c in ("vlm", "blind", "oracle")))

# %% [markdown]
# The model is ahead of every control, and the interval of each difference stays above 0. Read the rows: *relation* gains least over
# its prior, and patch-shuffling takes all of that gain. **Complementary pairs** are the sharpest control: one question, two images, two
# answers. Without the image nobody has both right.
#
# ## 6. POPE: is there a red star?
#
# A model that names what is not there *hallucinates*. POPE (Li et al. 2023) asks "Is there a ... in the image?", half of it about absent
# things: any (**random**), the most frequent ones (**popular**), or those that most often come together with what is there
# (**adversarial**). A thing in Shapes is a colour with a shape, so both must be *bound* to each other.
#
# **Exercise 5: POPE's metrics.** ★☆☆ 6 minutes. "Yes" is the positive class; the yes ratio is that of the *answers*.
# <details><summary>Hint</summary>
#
# Count right yeses, all yeses said, all that are there. Mind the model that never says yes.
# </details>


# %% nbgrader={"grade": false, "grade_id": "pope_metrics", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def pope_metrics(said, labels):
    """Two lists, True for yes -> accuracy, precision, recall, f1, yes_ratio; 0 where nothing is to divide."""
    ### BEGIN SOLUTION
    hits = sum(s and there for s, there in zip(said, labels, strict=True))
    return {
        "accuracy": sum(s == there for s, there in zip(said, labels, strict=True)) / len(said),
        "precision": hits / max(1, sum(said)),
        "recall": hits / max(1, sum(labels)),
        "f1": 2 * hits / max(1, sum(said) + sum(labels)),
        "yes_ratio": sum(said) / len(said),
    }
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pope_metrics-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
pope_metrics = check.pope_metrics(pope_metrics)

# %%
folder, found = home() / "notebook-05", pd.DataFrame()
for split in ("random", "popular", "adversarial"):
    asked = benchmarks.write_pope(folder / split, table, split, 60)  # POPE's own file format
    labels, yes = [row["answer"] for row in asked], ["yes"] * len(asked)
    for name, said in {"yes to all": yes, "blind": ask(asked, "blind"), "vlm": ask(asked)}.items():
        parsed = [pope.parse_answer(text) for text in said]
        mine = pope_metrics(*([a == "yes" for a in each] for each in (parsed, labels)))
        assert mine.items() <= pope.pope_scores(said, labels).items()  # equal to the library's
        found.loc[f"{split}: {name}", list(mine)] = list(mine.values())
absent = [row for row in asked if row["answer"] == "no"]
print((folder / "adversarial").read_text().splitlines()[0])
(100 * found).round(1)

# %% [markdown]
# "Yes to all" has a recall of 100% and an $F_1$ of two thirds, so look at the yes ratio before $F_1$. The official parser takes *whatever is not
# plainly no* for a yes: an empty answer, "NO", "I see none". Published figures (LLaVA-1.5: 85.9) are the mean $F_1$ of three
# splits.
#
# ## 7. MMBench: VanillaEval and CircularEval
#
# Four options, and a letter to be named: guessing earns 25%. MMBench (Liu et al. 2023) asks each question again with its options rotated. Rows 7, 1000007, 2000007, ... are
# rotations of question 7. **VanillaEval** scores the first rotations; **CircularEval** counts a question only if *every* rotation is
# right.
#
# **Exercise 6: both.** ★★☆ 7 minutes. Rows may stand in any order, and a question may have fewer rotations than options.
# <details><summary>Hint</summary>
#
# `index % 1_000_000` is the question. Collect the rows of each; the first rotation has the lowest index.
# </details>


# %% nbgrader={"grade": false, "grade_id": "circular_and_vanilla", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def circular_and_vanilla(indices, right):
    """Row indices and whether each row is right -> (CircularEval, VanillaEval), shares of the questions."""
    ### BEGIN SOLUTION
    questions = {}
    for index, good in sorted(zip(indices, right, strict=True)):
        questions.setdefault(index % 1_000_000, []).append(good)
    circular = [all(rows) for rows in questions.values()]
    return sum(circular) / len(questions), sum(rows[0] for rows in questions.values()) / len(
        questions
    )
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "circular_and_vanilla-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
circular_and_vanilla = check.circular_and_vanilla(circular_and_vanilla)

# %% [markdown]
# **Predict first:** a model guesses a letter each time. What is its CircularEval with four options, in percent?

# %%
my_guess = 6  # percent

sheet, asked = benchmarks.write_choices(folder / "shapes.tsv", rows, ask.image)  # MMBench's TSV
indices, results = [row["index"] for row in sheet], pd.DataFrame()
given = {"vlm": ask(asked), "blind": ask(asked, "blind"), "always A": "A" * len(sheet)}
for name, said in given.items():
    pairs = list(zip(said, sheet, strict=True))
    right = [mmbench.extract_letter(a, row["options"]) == row["answer"] for a, row in pairs]
    results.loc[name, ["CircularEval", "VanillaEval"]] = circular_and_vanilla(indices, right)
    library = mmbench.mmbench_scores(sheet, dict(zip(indices, said, strict=True)))
    assert results.loc[name].tolist() == [library["circular"], library["plain"]]
results.loc["guessing"] = library["chance_circular"], library["chance_plain"]
print(f"guessing among four: {100 / 4**4:.1f}% (you guessed {my_guess})")
texts = ("B.", "The answer is B", "it is red", "red or blue", "b")
print({text: mmbench.extract_letter(text, {"A": "blue", "B": "red"}) for text in texts})
(100 * results).round(1)

# %% [markdown]
# VanillaEval rewards a liking for one letter; CircularEval does not. What the *options* give away is in the blind row. Letters
# are read as VLMEvalKit reads them today, without a judge model: "b" is no answer, a unique option text is, and "answer is B" counts.
#
# ## 8. Failures as findings
#
# A score is a mean; what is wrong stands in the mistakes. Five kinds, each beside the best *constant* answer and the oracle:
# **counting**, **text** (the handwritten digit), **relation** (all; *level* things in one row or column), **reasoning** ("are there more circles than squares?", which the
# language model was never trained on), **hallucination** (POPE's absent adversarial things).

# %%
count, digit = (benchmarks.of_type(every, kind, 200) for kind in ("count", "digit"))
level, more = benchmarks.level_questions(table, 300), benchmarks.more_questions(table, 200)
sets = {"counting": count, "text": digit, "relation": relation, "level relation": level}
columns = ["asked", "wrong", "right %", "low", "high", "constant %", "oracle %"]
findings, wrong = pd.DataFrame(columns=columns), {}
for kind, asked in {**sets, "reasoning": more, "hallucination": absent}.items():
    truth, right = [row["answer"] for row in asked], ask.right(asked)
    constant = max(map(truth.count, truth)) / len(truth)
    shares = *interval(right, asked), constant, ask.right(asked, "oracle").mean().item()
    wrong[kind] = [row for row, good in zip(asked, right, strict=True) if not good]
    findings.loc[kind] = len(asked), len(wrong[kind]), *(100 * share for share in shares)
few, missed = (sum(map(benchmarks.is_level, each)) for each in (relation, wrong["relation"]))
print(f"level things among the 200 relations: {few}, answered wrong: {missed}")
right, low, high, constant, oracle = findings.iloc[:, 2:].to_numpy().T
claim(low[:2].min() > 85, (few, missed) == (8, 5), low[3] < 50 < high[3], oracle[3] < 60)
claim(max(high[4], oracle[4]) < constant[4], oracle[5] < high[5])
display(findings.round(1))
three = [row for each in wrong.values() for row in each[:3]]
titles = [f"{r['question']} says {ask([r])[0]}, right {r['answer']}" for r in three]
plots.show_images([ask.image(row["image_id"]) for row in three], titles, columns=6, size=116)

# %% [markdown]
# **What the five kinds say**
#
# - **Counting** and **text** hold: above 85% with their intervals. There are at most four shapes, and one digit.
# - **Relation** looks good at 84%, and hides a hole. Of the level pairs among the 200, the model gets **five of eight wrong**: it
#   says that level things are above, or left of, each other. Eight are few (3 of 8: anything from 9% to 76%), so we made 300
#   more: about one in two is right, a coin. The oracle does no better with the scene in words: the language model fails here, not the image encoder.
# - **Reasoning**: below the constant "no", and the oracle too. The language model cannot compare two counts; no connector
#   will repair that.
# - **Hallucination**: yes to one absent thing in six; in the images shown its colour and its shape are there, on two objects. The
#   oracle does no better: much of this *binding* error is the language model's.
#
# ## What you showed
#
# - Metrics by hand equal the official code, and each is fooled by something that you can name.
# - This model looks: it is ahead of each control, and answers pairs that no blind model can.
# - Its mean of 90% hides a coin toss (level things) and a task it cannot do (comparing counts).
#
# ## What this does not show
#
# - Anything about photographs: [05t](05t_photographs.ipynb) runs SmolVLM2's architecture here, and asks its real weights on the hub.
# - Retrieval, and whether step-by-step prompts help on level things (they do): [05b](05b_retrieval_and_steps.ipynb).
# - SPICE and the official METEOR, which need Java: `vlm-lite eval captions`.
#
# ## Check yourself
#
# - [ ] I can say what three matches of ten earn, and when "Yes" is wrong.
# - [ ] I know a false caption that each metric prefers to a true one.
# - [ ] I resample images, not questions, and compare two models on the same questions.
#
# ## To answer in words
#
# 1. A paper reports 5 points more on VQA v2 than yours, with the same model. Name three reasons.
# 2. Shuffled images score *above* blind. What may the model have learnt?
#
# ## Where next
#
# [06](06_bug_museum.ipynb) shows bugs that a score hides. For a model of yours, go on with
# [evaluate your own model](../docs/evaluating.md).
