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
#     builds: each metric by hand, the controls beside it, and a page that shows whether a model looks
#     minutes_t4_estimate: 10
#     reads: [zoo/shapes-vlm, zoo/shapes-clip, zoo/shapes-gpt2]
#     outputs_of: cf3b659e108004a2b851e73cb3197ebe695b500d084673c40a01146fd6759c0f
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/05_evaluation.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/05_evaluation.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny", "t4"]

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

profile, compute = get_profile(default=profile, offers=("tiny", "t4", "smoke")), get_compute()
print(describe(profile, compute, notebook="05_evaluation", t4_minutes=10))

# %% [markdown]
# # 5. Evaluation: what a score means, and whether the model looks
#
# A model scores 70%. Is that good? The number alone does not say. It may count "Yes" as wrong where "yes" is right; a
# model that never opened the picture may have half of it; and the half that it lacks may all be of one kind.
#
# **You will build** each metric of the field by hand, on three examples, until it equals the official code: VQA accuracy,
# BLEU, CIDEr, Recall@K, POPE, MMBench. Then the controls that belong beside every score.
#
# **You will be able to show** where each metric is fooled; what a model earns that does not look, guesses, or says yes to
# everything; and, at the end, a page of one model that would convince a sceptic that it looks, or that it does not.
#
# **Reading time:** 25 minutes. Nine exercises, 57 minutes if you write them all, none needed to go on.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.3 GB of memory on `tiny` (measured, 2 CPU cores); about 10 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** [00](00_start_here.ipynb), which asks this model its first questions. The model is the shipped
# `shapes-vlm`; nothing is trained here. Section 8 asks a real pretrained VLM about photographs, on a GPU (`t4`).
#
# Two questions stand behind every section. *Is the number what the field calls by that name?* So it is compared with the
# official code. *What else would earn this number?* So it gets its controls.

# %%
import math
import random
import tempfile
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from IPython.display import display

from vlm_lite import plots, recipes
from vlm_lite.data.language import CAPTION_PROMPT, STEPS, short_prompt
from vlm_lite.data.shapes import ANSWERS, five_questions, load_shapes
from vlm_lite.figures import BLUE, GREY, INK, Figure
from vlm_lite.labs import check
from vlm_lite.models.vlm import VLM
from vlm_lite.profiles import resolve_model

plots.style()
vlm = VLM.from_pretrained(resolve_model("shapes-vlm"))
captions, questions = load_shapes(
    "val", profile.val_images, progress=False
)  # no part of the model was trained on these
images, references, ids = recipes.load_pictures(
    captions
)  # (N, 3, 64, 64), five captions each, their ids
features = recipes.picture_features(vlm.vision, images, progress=False)  # (N, 16, Dv)
place_of = {image_id: k for k, image_id in enumerate(ids)}


def ask(rows, seen=features, suffix="", words=4, model=vlm):
    """The VLM's answers to rows of questions about their own pictures; `seen` None asks blind."""
    own = None if seen is None else seen[[place_of[row["image_id"]] for row in rows]].float()
    return model.generate(
        own, [short_prompt(row["question"] + suffix) for row in rows], max_new_tokens=words
    )


asked = questions.select(range(min(500, len(questions))))
rows = [dict(row) for row in asked.remove_columns("image")]
answers = ask(rows)
print(
    f"{len(images)} pictures, {len(rows)} questions asked; the first: {rows[0]['question']} {answers[0]!r}, "
    f"the ten answers in the file: {dict(Counter(rows[0]['answers']))}"
)


# %% [markdown]
# ## 1. VQA accuracy
#
# Ten people $a_1 \dots a_{10}$ answered each question of VQA v2. (For Shapes nobody was asked: its ten answers come from a
# rule, which sometimes puts another word for the same thing, as "big" for "large".) Three who agree with the model are
# enough. So that a person is never compared with himself, the official code leaves each one out in turn:
#
# $$ \mathrm{acc}(\hat a) = \frac{1}{10} \sum_{k=1}^{10} \min\!\left(1,\ \tfrac{1}{3}\,\big|\{\,j \neq k : a_j = \hat a\,\}\big|\right) $$
#
# **Exercise 1: VQA accuracy.** ★☆☆ 5 minutes. Compare the texts as they stand.
# <details><summary>Hint</summary>
#
# `others = answers[:k] + answers[k + 1:]`, and a list has `.count(value)`. What do two matches give?
# </details>


# %% nbgrader={"grade": false, "grade_id": "vqa_accuracy", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def vqa_accuracy(prediction, answers):
    """A text and the ten people's -> accuracy in [0, 1]."""
    ### BEGIN SOLUTION
    left_out = [answers[:k] + answers[k + 1 :] for k in range(len(answers))]
    return sum(min(1, others.count(prediction) / 3) for others in left_out) / len(answers)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "vqa_accuracy-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
vqa_accuracy = check.vqa_accuracy(vqa_accuracy)
print(
    "0 to 5 matches:",
    [round(vqa_accuracy("red", ["red"] * n + ["pink"] * (10 - n)), 2) for n in range(6)],
)

# %% [markdown]
# **The quirk that moves scores.** Before comparing, the official code makes texts alike: lower case, no punctuation, no
# articles, "two" becomes "2". But it does so **only where the ten people are not all of one mind**. Many tools do it
# always, and report a higher number under the same name.
#
# **Predict first:** ten people say `yes`, the model says `Yes`. What is its official score, in percent?

# %%
my_guess = 100  # percent; change it before you go on

from vlm_lite.evals import vqa


def by_hand(prediction, people):
    if len(set(people)) > 1:
        prediction, *people = map(vqa.normalize_answer, [prediction, *people])
    return vqa_accuracy(prediction, people)


examples = [
    ("2", ["two"] * 6 + ["2"] * 2 + ["3"] * 2),
    ("a red one", ["red"] * 7 + ["orange"] * 3),
    ("Yes", ["yes"] * 10),
]
print(f"{'model':10} {'ten people':28} {'by hand':>8} {'official':>9} {'always':>7}")
for said, people in examples:
    scores = [
        by_hand(said, people),
        vqa.vqa_accuracy(said, people),
        vqa.vqa_accuracy(said, people, "always"),
    ]
    assert math.isclose(scores[0], scores[1])
    shown = ", ".join(f"{n} {word}" for word, n in Counter(people).items())
    print(f"{said:10} {shown:28} {scores[0]:8.2f} {scores[1]:9.2f} {scores[2]:7.2f}")
mine = [by_hand(said, row["answers"]) for said, row in zip(answers, rows, strict=True)]
vqa_agrees = all(
    math.isclose(*pair, abs_tol=1e-9)
    for pair in zip(mine, vqa.vqa_scores(answers, rows), strict=True)
)
assert vqa_agrees
shouted = [said.capitalize() for said in answers]
print(f"\nyou guessed {my_guess}%, it is {100 * vqa.vqa_accuracy('Yes', ['yes'] * 10):.0f}%")
print(
    f"the VLM's {len(rows)} answers: {100 * sum(mine) / len(mine):.1f}% by hand and by the library; with a capital letter "
    f"{vqa.score_vqa(shouted, rows)['overall']:.1f}% (official), {vqa.score_vqa(shouted, rows, 'always')['overall']:.1f}% (always)"
)

# %% [markdown]
# **Where it is fooled.** By form: "a red one" is right and earns nothing, and so is every answer in a sentence. A chat
# model may lose its score to its manners, and win it back with a prompt ("answer in one word"), without seeing better.
#
# ## 2. Captions: BLEU and CIDEr
#
# **BLEU** asks: of the candidate's words, and of its pairs, triples and quadruples, how many stand in a reference? A
# caption could repeat one safe word for ever; so each $n$-gram counts at most as often as in the *one* reference that has
# it most (it is *clipped*):
#
# $$ p_n = \frac{\sum_{\text{captions}} \sum_{g} \min\big(\mathrm{count}(g),\ \max_{r} \mathrm{count}_r(g)\big)}{\sum_{\text{captions}} \sum_g \mathrm{count}(g)} $$
#
# The sums run over all captions *before* the division.
#
# **Exercise 2: clipped matches.** ★★☆ 8 minutes. The two sums of one caption.
# <details><summary>Hint</summary>
#
# `Counter(ngrams(words, n))` counts; `a | b` keeps the larger count of each, `a & b` the smaller.
# </details>

# %% nbgrader={"grade": false, "grade_id": "clipped_matches", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
from collections import Counter


def ngrams(words, n):
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def clipped_matches(candidate, references, n):
    """A list of words and a list of such lists -> (matches, n-grams of the candidate)."""
    ### BEGIN SOLUTION
    said, most = Counter(ngrams(candidate, n)), Counter()
    for reference in references:
        most = most | Counter(ngrams(reference, n))
    return (said & most).total(), said.total()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "clipped_matches-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
clipped_matches = check.clipped_matches(clipped_matches)
print(
    "the the the the, against: the cat on the mat:",
    clipped_matches(["the"] * 4, ["the cat on the mat".split()], 1),
)

# %% [markdown]
# Precision alone would reward a single sure word, so short candidates pay a **brevity penalty**. With $c$ words said and
# $r$ in the references (for each caption the reference nearest in length):
#
# $$ \mathrm{BP} = \begin{cases} 1 & c \ge r \\ e^{\,1 - r/c} & c < r \end{cases} \qquad\qquad
#    \mathrm{BLEU}_n = \mathrm{BP} \cdot (p_1\, p_2 \cdots p_n)^{1/n} $$

# %%
import string

from vlm_lite.evals.captions import caption_scores


def words_of(text):
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()


def bleu(candidates, references):
    """Lists of N captions and N lists of captions, as words -> BLEU-1 to 4, and the brevity penalty."""
    said = sum(map(len, candidates))
    wanted = sum(
        min((abs(len(r) - len(c)), len(r)) for r in refs)[1]  # the reference nearest in length
        for c, refs in zip(candidates, references, strict=True)
    )
    penalty = 1.0 if said >= wanted else math.exp(1 - wanted / said)
    scores, product = [], 1.0
    for n in range(1, 5):
        counts = [
            clipped_matches(c, refs, n) for c, refs in zip(candidates, references, strict=True)
        ]
        product *= sum(matched for matched, _ in counts) / sum(total for _, total in counts)
        scores.append(penalty * product ** (1 / n))
    return scores, penalty


count = min(150, len(images))
own = vlm.generate(features[:count].float(), [CAPTION_PROMPT] * count, max_new_tokens=48)
three = [words_of(text) for text in own[:3]]
five_each = [[words_of(text) for text in texts] for texts in references[:3]]
mine, penalty = bleu(three, five_each)
library = caption_scores(
    dict(enumerate(references[:3])), dict(enumerate(own[:3])), ("BLEU", "CIDEr"), "whitespace"
)
for n, value in enumerate(mine, 1):
    print(
        f"BLEU-{n} of three captions: by hand {value:.4f}, pycocoevalcap {library[f'Bleu_{n}']:.4f}"
    )
    assert abs(value - library[f"Bleu_{n}"]) < 1e-4
print(
    f"brevity penalty {penalty:.3f}; of the same captions cut to five words {bleu([c[:5] for c in three], five_each)[1]:.3f}"
)


# %% [markdown]
# **CIDEr** asks which words *tell something*. "A" and "in the" stand in every picture's captions and weigh nothing. An
# $n$-gram that few pictures have weighs much:
#
# $$ w(g) = \log \frac{N}{\big|\{\text{pictures with } g \text{ in any of their captions}\}\big|} $$
#
# Candidate and reference become vectors, count times $w$, and CIDEr is the mean of their cosines over $n = 1 \dots 4$ and
# the references, times 10.
#
# **Exercise 3: rarity.** ★★☆ 7 minutes. The weights $w$, from the captions of all pictures.
# <details><summary>Hint</summary>
#
# A set of the $n$-grams of one picture, over all its captions; then count in how many of these sets each one is.
# </details>


# %% nbgrader={"grade": false, "grade_id": "rarity", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def rarity(pictures):
    """For each picture its captions, each a list of n-grams -> {n-gram: log(N / number of pictures that have it)}."""
    ### BEGIN SOLUTION
    having = {}
    for captions in pictures:
        for gram in {gram for caption in captions for gram in caption}:
            having[gram] = having.get(gram, 0) + 1
    return {gram: math.log(len(pictures) / n) for gram, n in having.items()}
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "rarity-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
rarity = check.rarity(rarity)
weights = rarity([[ngrams(words_of(text), 1) for text in texts] for texts in references[:count]])
ordered = sorted((weight, word) for (word,), weight in weights.items())
for name, some in (("tells least:", ordered[:4]), ("tells most: ", ordered[-4:])):
    print(name, ", ".join(f"{word} {weight:.2f}" for weight, word in some))


# %%
def cider(candidates, references):
    """Lists of N captions and N lists of captions, as words -> CIDEr-D, as the official code counts it."""
    total = 0.0
    for n in range(1, 5):
        weights = rarity([[ngrams(r, n) for r in refs] for refs in references])

        def vector(words, n=n, weights=weights):
            new = math.log(len(references))  # the weight of what no reference has
            return {
                g: times * weights.get(g, new) for g, times in Counter(ngrams(words, n)).items()
            }

        for said, refs in zip(candidates, references, strict=True):
            for reference in refs:
                a, b = vector(said), vector(reference)
                dot = sum(
                    min(weight, b[g]) * b[g] for g, weight in a.items() if g in b
                )  # clipped, as in BLEU
                lengths = math.hypot(*a.values()) * math.hypot(*b.values())
                apart = len(said) - len(reference)  # CIDEr-D lets a caption of another length pay
                total += (
                    10
                    / 4
                    / len(refs)
                    * (dot / lengths if lengths else 0)
                    * math.exp(-(apart**2) / 72)
                )
    return total / len(candidates)


print(
    f"CIDEr of three captions: by hand {cider(three, five_each):.4f}, pycocoevalcap {library['CIDEr']:.4f}"
)
assert abs(cider(three, five_each) - library["CIDEr"]) < 1e-4

# %% [markdown]
# **Where they are fooled.** Take captions that people might have written, about the *wrong picture*: each picture gets a
# true caption of the next one. And captions with one colour changed, the one word that matters.
#
# **Predict first:** what BLEU-1 has a perfect caption of another picture, in percent?

# %%
my_guess = 20  # percent

from vlm_lite.data.scenes import COLOURS


def other_colour(text):
    """The caption with its first colour changed."""
    found = [word for word in text.split() if word in COLOURS]
    return text.replace(found[0], [c for c in COLOURS if c not in found][0], 1) if found else text


first = [texts[0] for texts in references[:count]]
said = {
    "the VLM's own": own,
    "the VLM's, of the next picture": own[1:] + own[:1],
    "a true one": first,
    "a true one, of the next picture": first[1:] + first[:1],
    "a true one, a colour changed": list(map(other_colour, first)),
    "one caption for all": vlm.generate(None, [CAPTION_PROMPT], max_new_tokens=48) * count,
}
rest = {
    k: texts[1:] for k, texts in enumerate(references[:count])
}  # the four captions that none of them copies
caption_table = {
    name: caption_scores(rest, dict(enumerate(texts)), ("BLEU", "ROUGE_L", "CIDEr"), "whitespace")
    for name, texts in said.items()
}
print(
    f"{'caption of each picture':34} BLEU-1 BLEU-4 ROUGE-L  CIDEr   (times 100; {count} pictures, not PTB tokens)"
)
for name, scores in caption_table.items():
    print(
        f"{name:34}"
        + "".join(f"{100 * scores[key]:7.1f}" for key in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"))
    )
print(
    f"\nyou guessed {my_guess}; the true caption of the wrong picture has "
    f"{100 * caption_table['a true one, of the next picture']['Bleu_1']:.1f}"
)


# %% [markdown]
# Fluency earns most of BLEU-1. CIDEr separates right from wrong pictures best, which is why it is reported; but look at
# the row with a changed colour. **A caption score needs its shuffled row beside it**, and CIDEr figures of two different
# sets of pictures cannot be compared, since the weights come from the set.
#
# The official figures take the Penn Treebank tokeniser and METEOR, which run on Java: `vlm-lite eval captions` does.
#
# ## 3. Retrieval: Recall@K with several captions a picture
#
# Of all captions, are the picture's own among the $K$ nearest? A picture has five captions and **any** of them is a hit; a
# caption has one picture. So the two directions differ, and picture to caption is the easier one.
#
# **Exercise 4: both directions.** ★★☆ 8 minutes.
# <details><summary>Hint</summary>
#
# `similarity.topk(k, dim=1).indices` are captions, (N, k); `picture_of[...]` turns them into pictures. For captions take
# `dim=0`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "caption_recall", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def caption_recall(similarity, picture_of, k):
    """similarity (N, M), picture_of (M,) -> Recall@k from pictures to captions, and from captions to pictures."""
    ### BEGIN SOLUTION
    found = picture_of[similarity.topk(k, dim=1).indices]  # (N, k) pictures
    to_text = (found == torch.arange(len(similarity))[:, None]).any(dim=1).float().mean()
    found = similarity.topk(k, dim=0).indices  # (k, M) pictures
    return to_text, (found == picture_of).any(dim=0).float().mean()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "caption_recall-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
caption_recall = check.caption_recall(caption_recall)

# %%
from vlm_lite.evals.retrieval import recall_at_k
from vlm_lite.models.clip import CLIP

three_seen = F.normalize(
    torch.tensor([[1.0, 0.1], [0.6, 0.8], [-0.1, 1.0]]), dim=-1
)  # three pictures
three_read = F.normalize(
    torch.tensor([[0.9, 0.3], [0.5, 0.7], [0.8, 0.9], [0.2, 1.0], [0.0, 1.0], [-0.3, 0.9]]), dim=-1
)
three_of = torch.tensor([0, 0, 1, 1, 2, 2])  # of six captions, two each
mine, theirs = (
    caption_recall(three_seen @ three_read.T, three_of, 1),
    recall_at_k(three_seen, three_read, three_of, (1,)),
)
print(
    f"three pictures with two captions each, R@1: by hand {mine[0]:.3f} and {mine[1]:.3f}, library "
    f"{theirs['image_to_text'][1]:.3f} and {theirs['text_to_image'][1]:.3f}"
)
assert math.isclose(mine[0], theirs["image_to_text"][1], abs_tol=1e-6) and math.isclose(
    mine[1], theirs["text_to_image"][1], abs_tol=1e-6
)

eye, n, owner_of = CLIP.from_pretrained(resolve_model("shapes-clip")), min(300, len(images)), {}
for k, five_texts in enumerate(references[:n]):
    for text in five_texts:
        owner_of.setdefault(text, k)  # a caption that two pictures share is kept once
texts, owner = list(owner_of), torch.tensor(list(owner_of.values()))
seen, read = recipes.embed_images(eye, images[:n]), recipes.embed_texts(eye, texts, vlm.tokenizer)
similarity = F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T  # (n, M)
library = recall_at_k(seen, read, owner)
for k in (1, 5, 10):
    there, back = caption_recall(similarity, owner, k)
    assert (
        abs(there - library["image_to_text"][k]) < 1.5 / n
        and abs(back - library["text_to_image"][k]) < 1.5 / n
    )  # rounding
    print(
        f"R@{k:<2} picture to caption {100 * there:5.1f}%, caption to picture {100 * back:5.1f}%   (by hand = library)"
    )
ties = torch.zeros(n, len(texts))
by_topk = caption_recall(ties, owner, 10)[1]
strict = recall_at_k(torch.ones(n, 4), torch.ones(len(texts), 4), owner)["text_to_image"][10]
print(
    f"\nan eye that sees nothing, all similarities equal: R@10 of captions by topk {100 * by_topk:.1f}%, "
    f"by the library {100 * strict:.1f}%"
)


# %% [markdown]
# **Where it is fooled.** By ties, as you see, and by what is in the gallery: with 300 pictures R@1 is easier than with
# 5,000. Two captions with the same words cannot be told apart by anyone, so they should count as one (`texts=`).
#
# ## 4. Does it look? The controls of a VQA score
#
# | control | what is asked | what it tells |
# |---|---|---|
# | **majority** | one answer to everything | how lopsided the answers are |
# | **type prior** | the most frequent training answer of each *type* of question | what the type alone is worth |
# | **blind** | the question, no picture | all that the words give away |
# | **blank** | an empty picture | whether *any* picture changes something |
# | **shuffled** | another picture | whether it must be *this* picture |
# | **patch-shuffled** | this picture, its patches in disorder | whether *where* things are matters |
# | **oracle** | the scene in words | what this brain could know at most |
#
# **Exercise 5: the type prior.** ★☆☆ 6 minutes. Its answers come from *training* questions. For a type that training
# never had, give the answer that is most frequent overall.
# <details><summary>Hint</summary>
#
# `max(set(given), key=given.count)` is the most frequent of a list.
# </details>


# %% nbgrader={"grade": false, "grade_id": "type_prior", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def type_prior(train_types, train_answers, types):
    """Types and answers of training questions, and the types of those to answer -> one answer each."""
    ### BEGIN SOLUTION
    best = {}
    for kind in set(types):
        given = [
            a for t, a in zip(train_types, train_answers, strict=True) if t == kind
        ] or train_answers
        best[kind] = max(sorted(set(given)), key=given.count)
    return [best[kind] for kind in types]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "type_prior-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
type_prior = check.type_prior(type_prior)

# %% [markdown]
# **Predict first:** with the patches of each picture in disorder, every colour, shape, size and digit is still there, and
# the count is the same. Only *where* things are is lost. What accuracy will be left, in percent?

# %% tags=["thumbnail"]
my_guess = 60  # percent, with the patches in disorder

from vlm_lite.evals.controls import find_pairs, majority_answer, shuffle_patches
from vlm_lite.evals.probes import bootstrap_interval, bridge_score, multimodal_gain

probe = recipes.probe(vlm, captions, questions, limit=len(rows))
_, train = load_shapes("train", profile.val_images, progress=False)
types, train_types, train_answers = (
    [row["question_type"] for row in rows],
    train["question_type"][:],
    train["answer"][:],
)
disordered = recipes.picture_features(vlm.vision, shuffle_patches(images, 16), progress=False)
said = {
    "majority": [majority_answer(train_answers)] * len(rows),
    "type prior": type_prior(train_types, train_answers, types),
    **probe.answers,
    "patch-shuffled": ask(rows, disordered),
}
scores = {name: vqa.vqa_scores(given, rows) for name, given in said.items()}  # each (Q,)
board = {
    name: bootstrap_interval(scores[name])
    for name in (
        "majority",
        "type prior",
        "blind",
        "blank",
        "shuffled",
        "patch-shuffled",
        "vlm",
        "oracle",
    )
}
plots.controls_bars(
    board,
    guess=("patch-shuffled", my_guess),
    title=f"One score and its controls, {len(rows)} questions",
)


# %% [markdown]
# The interval of each bar says how far it would move with other questions of the same kind. To compare two bars, do
# **not** look whether their intervals overlap: the questions are the same, and a hard one is hard for both. Resample the
# questions, and take the *difference* each time.
#
# **Exercise 6: a paired interval.** ★★☆ 6 minutes.
# <details><summary>Hint</summary>
#
# `(a - b)[draws]` is (R, Q). The mean of each row, then `torch.quantile`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "paired_interval", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def paired_interval(a, b, draws):
    """Scores a, b (Q,) of the same questions, draws (R, Q) of question numbers -> (low, high), 95%, of mean(a - b)."""
    ### BEGIN SOLUTION
    means = (a - b)[draws].mean(dim=1)
    return means.quantile(0.025), means.quantile(0.975)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "paired_interval-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
paired_interval = check.paired_interval(paired_interval)

# %%
of = {name: torch.tensor(values) for name, values in scores.items()}
draws = torch.randint(len(rows), (2000, len(rows)), generator=torch.Generator().manual_seed(0))
low, high = paired_interval(of["vlm"], of["blind"], draws)
gain, bridge = (
    multimodal_gain(scores["vlm"], scores["blind"]),
    bridge_score(scores["vlm"], scores["blind"], scores["oracle"]),
)
assert abs(low - gain.low) < 0.02 and abs(high - gain.high) < 0.02  # scipy draws other questions
print(f"multimodal gain, vlm - blind: {gain} by scipy, [{low:.3f}, {high:.3f}] by hand")
print(f"bridge score, the gain as a share of oracle - blind: {bridge}")
for name in ("type prior", "blank", "shuffled", "patch-shuffled"):
    low, high = paired_interval(of["vlm"], of[name], draws)
    print(
        f"the VLM is ahead of {name:15} by {100 * (of['vlm'] - of[name]).mean():5.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
    )
print(
    f"\n{'percent, by type':18}"
    + "".join(f"{name:>15}" for name in ("type prior", "blind", "patch-shuffled", "vlm", "oracle"))
)
for kind in sorted(set(types)):
    chosen = torch.tensor([t == kind for t in types])
    print(
        f"{kind:18}"
        + "".join(
            f"{100 * of[name][chosen].mean():15.1f}"
            for name in ("type prior", "blind", "patch-shuffled", "vlm", "oracle")
        )
    )


# %% [markdown]
# Read the table by rows. A type whose last columns stand at its prior is a type that the model does *not* see, whatever
# the overall score says. A type that loses nothing by shuffled patches is answered from *what* is there; one that should
# need places and loses nothing is answered without them.
#
# **Complementary pairs** are the sharpest control: one question, two pictures, two answers. Whoever answers without the
# picture says the same twice and never has both right.
#
# **Exercise 7: pairs scored as pairs.** ★☆☆ 4 minutes. An answer is right with a score above a half.
# <details><summary>Hint</summary>
#
# `all(scores[k] > 0.5 for k in pair)` for one pair.
# </details>


# %% nbgrader={"grade": false, "grade_id": "pair_accuracy", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def pair_accuracy(scores, pairs):
    """Scores (Q,) and P pairs of question numbers -> the share of pairs of which both are right."""
    ### BEGIN SOLUTION
    return sum(all(scores[k] > 0.5 for k in pair) for pair in pairs) / len(pairs)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pair_accuracy-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
pair_accuracy = check.pair_accuracy(pair_accuracy)
pairs = find_pairs(*([row[key] for row in rows] for key in ("question", "image_id", "answer")))
in_pairs = {name: pair_accuracy(values, pairs) for name, values in scores.items()}
assert in_pairs["blind"] == in_pairs["blank"] == in_pairs["majority"] == in_pairs["type prior"] == 0
print(
    f"{len(pairs)} pairs, both right: "
    + ", ".join(f"{name} {100 * value:.1f}%" for name, value in in_pairs.items())
)


# %% [markdown]
# ## 5. POPE: is there a chair?
#
# A model that mentions what is not there *hallucinates*. POPE (Li et al. 2023) asks "Is there a ... in the image?", half
# of it about things that are absent. How the absent ones are chosen makes three splits:
#
# - **random:** any absent thing;
# - **popular:** the absent things that are most frequent in the data;
# - **adversarial:** those that most often come *together with* what is in this picture.
#
# **Exercise 8: POPE's figures.** ★☆☆ 6 minutes. Yes is the positive class. The yes ratio is that of the *answers*.
# <details><summary>Hint</summary>
#
# Count the pairs (said yes, is there): right yeses, all yeses said, all that are there. Mind the model that never says yes.
# </details>


# %% nbgrader={"grade": false, "grade_id": "pope_figures", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def pope_figures(said, labels):
    """Two lists, True for yes -> {"accuracy", "precision", "recall", "f1", "yes_ratio"}, 0 where nothing is to divide."""
    ### BEGIN SOLUTION
    hits = sum(s and there for s, there in zip(said, labels, strict=True))
    right = sum(s == there for s, there in zip(said, labels, strict=True))
    both = sum(said) + sum(labels)
    return {
        "accuracy": right / len(said),
        "precision": hits / sum(said) if any(said) else 0.0,
        "recall": hits / sum(labels) if any(labels) else 0.0,
        "f1": 2 * hits / both if both else 0.0,
        "yes_ratio": sum(said) / len(said),
    }
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pope_figures-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
pope_figures = check.pope_figures(pope_figures)
for name, said in (("three answers", [True, True, False]), ("yes to all", [True] * 3)):
    print(
        f"{name}, two things there:",
        {key: round(value, 2) for key, value in pope_figures(said, [True, False, True]).items()},
    )

# %% [markdown]
# **The files.** From the scenes' descriptions we make the three label files in POPE's own format, JSON lines with
# `question_id`, `image`, `text`, `label`, and read them back with the reader that reads the official ones. A thing is a
# colour with a shape, "red star": to be right about it, colour and shape must be *bound* to each other.

# %%
import json
import re

from vlm_lite.evals.pope import parse_answer, pope_scores, read_pope

in_scene = [
    sorted(set(re.findall(r"(?:small|large) (\w+ \w+) in", text)))
    for text in captions["description"][:]
]
frequent = Counter(thing for things in in_scene for thing in things)
together = Counter((a, b) for things in in_scene for a in things for b in things if a != b)


def absent_things(things, split, draw):
    """As many things that are not in the scene as there are in it."""
    absent = sorted(set(frequent) - set(things))
    draw.shuffle(absent)  # so that equals stand in no order
    rank = {
        "random": lambda thing: 0,
        "popular": lambda thing: -frequent[thing],
        "adversarial": lambda thing: -sum(together[here, thing] for here in things),
    }[split]
    return sorted(absent, key=rank)[: len(things)]


folder = Path(tempfile.mkdtemp())
pope_rows = {}
for split in ("random", "popular", "adversarial"):
    draw, lines = random.Random(0), []
    for k, things in enumerate(in_scene[:120]):
        for thing, label in [(t, "yes") for t in things] + [
            (t, "no") for t in absent_things(things, split, draw)
        ]:
            lines.append(
                {
                    "question_id": len(lines) + 1,
                    "image": str(ids[k]),
                    "text": f"Is there a {thing} in the image?",
                    "label": label,
                }
            )
    (folder / f"{split}.json").write_text("\n".join(map(json.dumps, lines)))
    pope_rows[split] = [
        {"question": line["text"], "image_id": int(line["image"]), "id": line["question_id"]}
        for line in lines
    ]
print((folder / "adversarial.json").read_text().splitlines()[0])


def pope(split, given, name):
    """Write answers as POPE's answer file, read both files back, and score them."""
    path = folder / f"{split}-{name}.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"question_id": row["id"], "answer": said})
            for row, said in zip(pope_rows[split], given, strict=True)
        )
    )
    said, labels, _ = read_pope(folder / f"{split}.json", path)
    found = pope_scores(said, labels)
    mine = pope_figures(
        [word == "yes" for word in map(parse_answer, said)], [label == "yes" for label in labels]
    )
    assert all(math.isclose(found[key], value) for key, value in mine.items())
    return found


untrained = recipes.new_vlm(
    "qformer", seed=0
)  # the same eye and brain, and a nerve of random weights
pope_table = {}
for split, part in pope_rows.items():
    pope_table[split, "yes to all"] = pope(split, ["yes"] * len(part), "yes")
    for name, model, seen in (
        ("blind", vlm, None),
        ("before training", untrained, features),
        ("after training", vlm, features),
    ):
        pope_table[split, name] = pope(split, ask(part, seen, model=model), name.replace(" ", "-"))
figures = ("accuracy", "precision", "recall", "f1", "yes_ratio")
print(f"\n{'percent':28}" + "".join(f"{key:>11}" for key in figures))
for (split, name), found in pope_table.items():
    print(f"{split:12} {name:15}" + "".join(f"{100 * found[key]:11.1f}" for key in figures))


# %% [markdown]
# **Where it is fooled.** "Yes to all" has a recall of 1 and an $F_1$ of two thirds: look at the yes ratio first, before
# and after training. And the official parser takes *whatever is not plainly no* for a yes: an empty answer, "NO", even "I
# see none". In Shapes all things are drawn about equally often, so popular is no harder than random *by making*; what
# comes together shares a colour or a shape, so adversarial asks about the binding.
#
# ## 6. MMBench: lettered choices, asked in a circle
#
# Four options, a letter to be named: guessing earns 25%. MMBench asks each question again with its options rotated. The
# rows 7, 1000007, 2000007, ... are rotations of question 7. **Plain** is the score of the first rotations; **circular**
# counts a question only if *every* rotation of it is right.
#
# **Exercise 9: circular and plain.** ★★☆ 7 minutes. Rows may stand in any order, and a question may have fewer rotations.
# <details><summary>Hint</summary>
#
# `index % 1_000_000` is the question. Collect the rows of each question; the first rotation has the lowest index.
# </details>


# %% nbgrader={"grade": false, "grade_id": "circular_and_plain", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def circular_and_plain(indices, right):
    """Row indices and whether each row is right -> (circular, plain), shares of the questions."""
    ### BEGIN SOLUTION
    questions = {}
    for index, good in sorted(zip(indices, right, strict=True)):
        questions.setdefault(index % 1_000_000, []).append(good)
    circular = [all(rows) for rows in questions.values()]
    plain = [rows[0] for rows in questions.values()]
    return sum(circular) / len(questions), sum(plain) / len(questions)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "circular_and_plain-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
circular_and_plain = check.circular_and_plain(circular_and_plain)
three = [
    (1, True),
    (1_000_001, True),
    (2, True),
    (1_000_002, False),
    (3, False),
]  # three questions; one has one rotation
print(
    "circular and plain of three questions:",
    [round(value, 2) for value in circular_and_plain(*zip(*three, strict=True))],
)

# %% [markdown]
# **Predict first:** a model that knows nothing and guesses a letter each time. What is its circular score with four
# options, in percent?

# %%
my_guess = 6  # percent

import base64
import io

from vlm_lite.evals import mmbench
from vlm_lite.evals.vlmevalkit import write_mmbench
from vlm_lite.figures import pil_image


def lettered(row, number, draw):
    """One question of Shapes as the rows of MMBench's table: as many rotations as options."""
    others = [word for word in ANSWERS[row["question_type"]] if word != row["answer"]]
    options = draw.sample(
        [row["answer"], *draw.sample(others, min(3, len(others)))], min(3, len(others)) + 1
    )
    picture = io.BytesIO()
    pil_image(images[place_of[row["image_id"]]]).save(picture, "png")
    for turn in range(len(options)):
        turned = dict(zip("ABCD", options[turn:] + options[:turn], strict=False))
        yield {
            "index": turn * mmbench.ROTATION + number,
            "question": row["question"],
            "options": turned,
            "answer": next(letter for letter, word in turned.items() if word == row["answer"]),
            "category": row["question_type"],
            "image_id": row["image_id"],
            "image": base64.b64encode(picture.getvalue()).decode() if turn == 0 else str(number),
        }


draw, table = random.Random(0), []
for kind in sorted(ANSWERS):
    for row in [row for row in rows if row["question_type"] == kind][:12]:
        table += lettered(row, 1 + len(table), draw)
write_mmbench(folder / "shapes.tsv", table)
sheet = mmbench.read_mmbench(
    folder / "shapes.tsv"
)  # the reader of the official file, pictures checked
pictures = {row["index"]: row["image_id"] for row in table}
as_asked = [
    {
        "question": " ".join(
            [row["question"], *(f"{letter}. {word}" for letter, word in row["options"].items())]
        ),
        "image_id": pictures[row["index"]],
    }
    for row in sheet
]
print(as_asked[0]["question"], "→", ask(as_asked[:1])[0])

choices = {
    name: {row["index"]: said for row, said in zip(sheet, given, strict=True)}
    for name, given in (
        ("the VLM", ask(as_asked)),
        ("blind", ask(as_asked, None)),
        ("always A", ["A"] * len(sheet)),
    )
}
mm_table = {name: mmbench.mmbench_scores(sheet, given) for name, given in choices.items()}
for name, given in choices.items():
    right = [
        mmbench.extract_letter(given[row["index"]], row["options"]) == row["answer"]
        for row in sheet
    ]
    circular, plain = circular_and_plain([row["index"] for row in sheet], right)
    assert math.isclose(circular, mm_table[name]["circular"]) and math.isclose(
        plain, mm_table[name]["plain"]
    )
    print(f"{name:9} circular {100 * circular:5.1f}%, plain {100 * plain:5.1f}%")

guesses = [
    circular_and_plain(
        [row["index"] for row in sheet], [draw.random() * len(row["options"]) < 1 for row in sheet]
    )
    for _ in range(400)
]
circular, plain = (sum(values) / len(values) for values in zip(*guesses, strict=True))
chance = mm_table["the VLM"]
print(
    f"guessing, 400 times: circular {100 * circular:.1f}%, plain {100 * plain:.1f}%; in theory "
    f"{100 * chance['chance_circular']:.1f}% and {100 * chance['chance_plain']:.1f}%"
)
assert (
    abs(circular - chance["chance_circular"]) < 0.02 and abs(plain - chance["chance_plain"]) < 0.02
)
print(
    f"with four options alone: circular {100 / 4**4:.1f}% (you guessed {my_guess}), plain 25%; with two: 25% and 50%"
)
for text in ("B.", "The answer is B", "it is red", "red or blue", "b"):
    print(
        f"   {text!r:18} is read as {mmbench.extract_letter(text, {'A': 'blue', 'B': 'red', 'C': 'green'})}"
    )

# %% [markdown]
# **Where it is fooled.** Plain rewards a liking for one letter; circular does not. Neither sees what the *options* give
# away, which the blind row shows. And the letter must be read out of free text: "b" is no answer, a right word is.
#
# ## 7. Failures, by kind
#
# A score is a mean. What is wrong with the model stands in its mistakes. *Count*: is it off by one? *Digit*: does it mix
# two of them? *Relation*: does it know left from right, and that two things may be neither?
#
# The third panel sorts *relation* by how far the two things stand apart, along the axis that is asked about. **At 0** they
# are level: "is the star above the digit?" about two things in one row. The right answer is then always "no", whichever
# way one asks. Such questions are rare, so the mean over all hides how the model fares with them: this panel does not.

# %%
of_kind = {
    kind: [
        row
        for row in (dict(r) for r in questions.remove_columns("image"))
        if row["question_type"] == kind
    ][:200]
    for kind in ("count", "digit", "relation")
}
replies = {kind: ask(part) for kind, part in of_kind.items()}


def confusion(kind, words):
    """Rows: the right answer; columns: the model's, in shares of the row; (W, W)."""
    table = torch.zeros(len(words), len(words))
    for row, said in zip(of_kind[kind], replies[kind], strict=True):
        if said in words:
            table[words.index(row["answer"]), words.index(said)] += 1
    return table / table.sum(dim=1, keepdim=True).clamp(min=1)


def cell_of(words, description):
    """The grid row and column of the thing that a question names, where exactly one thing fits its words."""
    from vlm_lite.data.language import COLUMNS, ROWS

    wanted = (
        {"handwritten"}
        if "digit" in words
        else {word for word in words.split() if word not in ("the", "shape")}
    )
    fits = [
        thing
        for thing in description.removesuffix(".").split(". ")
        if wanted <= set(thing.split(" in ")[0].split())
    ]
    found = re.search(r"(\w+) row, (\w+) column", fits[0]) if len(fits) == 1 else None
    return (ROWS.index(found[1]), COLUMNS.index(found[2])) if found else None


by_distance = {
    d: [] for d in range(4)
}  # how far apart the two are, along the axis that is asked about
for row, said in zip(of_kind["relation"], replies["relation"], strict=True):
    one, relation, other = re.match(
        r"is (.+?) (left of|right of|above|below) (.+)\?", row["question"]
    ).groups()
    cells = [cell_of(words, row["description"]) for words in (one, other)]
    if None not in cells:
        axis = relation in ("left of", "right of")
        by_distance[abs(cells[0][axis] - cells[1][axis])].append(said == row["answer"])

correct = {
    kind: [said == row["answer"] for row, said in zip(part, replies[kind], strict=True)]
    for kind, part in of_kind.items()
}
figure = Figure(width=760, height=270, label="failures by kind", layout="constrained")
panels = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
for axes, kind, words in zip(panels, ("count", "digit"), ("01234", "0123456789"), strict=False):
    table = confusion(kind, list(words))
    axes.imshow(table, cmap="cividis", vmin=0, vmax=1)
    for i in set(range(len(words))) - {words.index(row["answer"]) for row in of_kind[kind]}:
        axes.text(
            len(words) / 2 - 0.5,
            i,
            "none asked",
            ha="center",
            va="center",
            fontsize=8,
            color="white",
        )
    for i, j in (table >= 0.1).nonzero().tolist() if kind == "count" else []:
        axes.text(
            j,
            i,
            f"{100 * table[i, j]:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color=INK if table[i, j] > 0.5 else "white",
        )
    axes.set(
        xlabel="the model's answer",
        ylabel="right answer",
        xticks=range(len(words)),
        yticks=range(len(words)),
        xticklabels=words,
        yticklabels=words,
    )
    axes.grid(False)
far = {d: 100 * sum(hits) / len(hits) for d, hits in by_distance.items() if hits}
panels[2].bar(far.keys(), far.values(), color=BLUE, width=0.6)
panels[2].axhline(50, color=GREY, linestyle=":")
for d, share in far.items():
    panels[2].text(d, share + 1.5, f"{share:.0f}", ha="center", fontsize=8)
panels[2].set(
    xlabel="rows or columns apart\n(and how many asked)",
    ylabel="right (%); dotted: a coin",
    ylim=(0, 108),
    yticks=range(0, 101, 20),
    xticks=list(far),
    xticklabels=[f"{d}\n({len(by_distance[d])})" for d in far],
)
if by_distance[0]:
    print(
        f'two things that are level, so that "no" is right: {len(by_distance[0])} asked, '
        f"{by_distance[0].count(False)} answered wrong"
    )
for axes, (kind, hits) in zip(panels, correct.items(), strict=True):
    axes.set_title(f"{kind}: {100 * sum(hits) / len(hits):.0f}% right")
figure

# %%
some = of_kind["relation"][:60]
steps = ask(some, suffix=f" {STEPS}", words=48)  # the brain learnt such chains from text
last_words = [text.rstrip(".").split()[-1] if text else "" for text in steps]
step_share = sum(word == row["answer"] for word, row in zip(last_words, some, strict=True)) / len(
    some
)
print(
    f"relations: at once {100 * sum(correct['relation'][:60]) / len(some):.0f}% right, step by step {100 * step_share:.0f}%. "
    f"One such chain:\n   {some[0]['question']} {steps[0]} (right: {some[0]['answer']})"
)
for kind, part in of_kind.items():
    wrong = [k for k, good in enumerate(correct[kind]) if not good][:5]
    print(f"\n{kind}: {correct[kind].count(False)} of {len(part)} wrong; the first of them:")
    if wrong:
        display(
            plots.show_images(
                [images[place_of[part[k]["image_id"]]] for k in wrong],
                [
                    f"{part[k]['question']} says {replies[kind][k]}, right {part[k]['answer']}"
                    for k in wrong
                ],
            )
        )

# %% [markdown]
# ## 8. A pretrained VLM on photographs (`t4`)
#
# The same page for `HuggingFaceTB/SmolVLM2-256M-Video-Instruct`: POPE's own label files, the COCO photographs they are
# about, one picture at a time and in batches, with its controls. Then two knobs: the resolution, and a prompt that asks
# to think step by step.
#
# **This part has not been run on a GPU by the authors**, nor with the real weights: a test runs its code with a small random
# model of the same class. So no figure of it is claimed here. It needs a network and is left out on `tiny`.

# %% tags=["t4"]
COMMIT = "7ef3026faa9a89ed11fd508385fad652fdc6349f"  # of github.com/AoiDragon/POPE, whose label files these are
PHOTOGRAPHS = 30  # with six questions each
if profile.name == "t4":
    import pooch
    from PIL import Image

    from vlm_lite.models.pretrained import PretrainedVLM

    cache = pooch.os_cache("vlm-lite-pope")
    source = f"https://raw.githubusercontent.com/AoiDragon/POPE/{COMMIT}/output/coco"
    real = {}
    for split in ("random", "popular", "adversarial"):
        path = pooch.retrieve(
            f"{source}/coco_pope_{split}.json", None, fname=f"{split}.json", path=cache
        )
        real[split] = [
            json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()
        ][: 6 * PHOTOGRAPHS]
    names = sorted({line["image"] for lines in real.values() for line in lines})
    coco = "http://images.cocodataset.org/val2014"
    photographs = {
        name: Image.open(pooch.retrieve(f"{coco}/{name}", None, fname=name, path=cache))
        for name in names
    }
    smol = PretrainedVLM(profile.vlm_model)
    millions = sum(p.numel() for p in smol.model.parameters()) / 1e6
    print(
        f"{len(photographs)} photographs; {millions:.0f} million parameters in {smol.model.dtype}"
    )
else:
    print(
        f'left out: the profile is "{profile.name}". On a GPU with a network, choose "t4" in the first cell.'
    )

# %% tags=["t4"]
import time


def timed(model, lines, batch_size, suffix=" Answer with yes or no.", other=None, words=8):
    """Answers to POPE lines, seconds a question, and the peak of GPU memory in MB; `other` shuffles the pictures."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    said, start = [], time.perf_counter()
    for k in range(0, len(lines), batch_size):
        part = lines[k : k + batch_size]
        seen = (
            None
            if other == "blind"
            else [photographs[(other or {}).get(line["image"], line["image"])] for line in part]
        )
        said += model.answer(seen, [line["text"] + suffix for line in part], words)
    memory = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else float("nan")
    return said, (time.perf_counter() - start) / len(lines), memory


def last_yes_or_no(text):
    """What an answer in steps comes to. POPE's parser reads the first sentence, where the steps only begin."""
    return (re.findall(r"\b(?:yes|no)\b", text.lower()) or [""])[-1]


def real_row(name, lines, model, batch_size, read=str, **options):
    said, seconds, memory = timed(model, lines, batch_size, **options)
    found = pope_scores(list(map(read, said)), [line["label"] for line in lines])
    print(
        f"{name:34}"
        + "".join(f"{100 * found[key]:10.1f}" for key in ("accuracy", "f1", "yes_ratio"))
        + f"{seconds:12.3f}{memory:10.0f}"
    )


if profile.name == "t4":
    print(
        f"{'POPE on photographs':34}{'accuracy':>10}{'f1':>10}{'yes %':>10}{'s/question':>12}{'MB':>10}"
    )
    hard, turned = real["adversarial"], dict(zip(names, names[1:] + names[:1], strict=True))
    real_row("adversarial, one at a time", hard[:30], smol, 1)
    for split, lines in real.items():
        real_row(f"{split}, batches of 8", lines, smol, 8)
    real_row("adversarial, blind", hard, smol, 8, other="blind")
    real_row("adversarial, shuffled", hard, smol, 8, other=turned)
    for edge in (512, 1024, 2048):
        smol.longest_edge = edge
        real_row(f"adversarial, longest edge {edge}", hard[:60], smol, 4)
    smol.longest_edge = 512
    think = {"suffix": " Think step by step, then answer: yes or no.", "words": 96}
    real_row("adversarial, step by step", hard[:60], smol, 8, **think)
    real_row("the same, its last yes or no read", hard[:60], smol, 8, last_yes_or_no, **think)

# %% [markdown]
# ## 9. The page
#
# What a sceptic would ask, each line computed from this run. `vlm-lite report shapes-vlm` writes such a page, as HTML and
# JSON, for any VLM of this course, also for one that you have trained: scores, controls, pictures with answers, failures.

# %%
adversarial = {
    name: pope_table["adversarial", name] for name in ("blind", "before training", "after training")
}
unseen = []  # types of questions whose interval above the type prior, or above blind, begins at 0 or below
for kind in sorted(set(types)):
    at = torch.tensor([k for k, t in enumerate(types) if t == kind])
    again = torch.randint(len(at), (2000, len(at)), generator=torch.Generator().manual_seed(0))
    if any(
        paired_interval(of["vlm"][at], of[name][at], again)[0] <= 0
        for name in ("type prior", "blind")
    ):
        unseen.append(kind)
claims = {
    "VQA accuracy by hand is the official one": vqa_agrees,
    "the picture is worth something: the gain's interval is above 0": gain.low > 0,
    "another picture is worth no more than none": paired_interval(
        of["shuffled"], of["blind"], draws
    )[0]
    <= 0,
    "pairs are answered that no blind model can answer": in_pairs["vlm"] > 0,
    "where things are matters: it is ahead of its patches in disorder": paired_interval(
        of["vlm"], of["patch-shuffled"], draws
    )[0]
    > 0,
    "it is ahead of the type prior": paired_interval(of["vlm"], of["type prior"], draws)[0] > 0,
    "captions are about their own pictures": caption_table["the VLM's own"]["CIDEr"]
    > caption_table["the VLM's, of the next picture"]["CIDEr"],
    "it does not just say yes: its yes ratio on POPE is between 40 and 60%": 0.4
    <= adversarial["after training"]["yes_ratio"]
    <= 0.6,
    "training made it better on POPE": adversarial["after training"]["accuracy"]
    > adversarial["before training"]["accuracy"],
    "circular is above what guessing and its own blind self earn": chance["circular"]
    > max(chance["chance_circular"], mm_table["blind"]["circular"]),
    "every type of question is ahead of its prior and of blind": not unseen,
}
for claim, holds in claims.items():
    print(f"[{'x' if holds else ' '}] {claim}")
print(f"types that are not shown to be seen: {', '.join(unseen) or 'none'}")
print(
    f"\nHEADLINE: VQA {100 * board['vlm'].value:.1f}% (blind {100 * board['blind'].value:.1f}, shuffled {100 * board['shuffled'].value:.1f}, "
    f"oracle {100 * board['oracle'].value:.1f}), bridge {bridge}, pairs {100 * in_pairs['vlm']:.1f}%"
)
check.progress(claims)

# %% [markdown]
# A box without its cross is not a fault of the page: it is what the page is for. Which one stays empty here, if any, and
# which section tells you why?
#
# **Can it see yet?** The scoreboard of the course, with a control that the others lack: its patches in
# disorder.

# %%
five = five_questions(questions)
pictures = [row["image"] for row in five]
plots.scoreboard(
    pictures,
    [row["question"] for row in five],
    [row["answer"] for row in five],
    {"blind": ask(five, None), "disorder": ask(five, disordered), "the VLM": ask(five)},
)

# %% [markdown]
# **What this does not show**
#
# - **Anything about photographs**, unless you ran section 8. Shapes has a small vocabulary and exact truth.
# - **That the model reasons.** A gain says that pixels matter, a pair that the right ones do, not how.
# - **How it stands to other models.** Compare under the same questions, the same normalisation and the same parser; else
#   compare nothing.
# - **More than these questions.** The intervals resample questions as if independent; several are about one picture, so
#   they are a little too narrow. They say nothing about other *kinds* of questions.
# - **METEOR and SPICE**, which need Java: `vlm-lite eval captions`.
#
# ## 10. Check yourself
#
# - [ ] I can say what two of ten matches earn, and when "Yes" is wrong.
# - [ ] I know which caption metric a fluent sentence fools most, and which row beside it would tell.
# - [ ] I can name a control for: a lopsided data set, a language prior, a picture that is ignored, places that are ignored.
# - [ ] I compare two models on the same questions with a paired interval.
# - [ ] I look at the yes ratio before I look at $F_1$, and at the letters before I look at plain accuracy.
#
# **In words**
#
# 1. A paper reports 5 points more on VQA v2 than yours, with the same model. Name three reasons that are not the model.
# 2. Shuffled pictures score *above* blind. What may the model have learnt, and which control would tell?
# 3. The type that patch-shuffling does not hurt: is that good or bad? For which types?
#
# **Where next.** [06](06_bug_museum.ipynb) shows bugs that a score hides and a control finds. For a model of yours, go on
# with [evaluate your own model](../docs/evaluating.md).

# %% [markdown]
# **Glossary**
#
# | term | 日本語 | meaning here |
# |---|---|---|
# | VQA accuracy | VQA正解率 | agreement with ten people, three are enough |
# | normalisation | 正規化（表記の統一） | making texts alike before comparing them |
# | n-gram | nグラム | n words in a row |
# | clipping | クリッピング（上限付きの計数） | counting a match at most as often as a reference has it |
# | brevity penalty | 短文ペナルティ | what BLEU takes off for short captions |
# | rarity, inverse document frequency | 逆文書頻度（IDF） | how few pictures' captions have an n-gram |
# | recall at K | 再現率@K（Recall@K） | a right partner among the K nearest |
# | majority, type prior | 多数派・質問タイプ別事前分布 | answers without a look |
# | blind, blank, shuffled | 画像なし・空画像・画像シャッフル | controls without the right picture |
# | patch-shuffled | パッチシャッフル | the picture with its parts in disorder |
# | oracle | オラクル（上限の目安） | the brain with the scene in words |
# | multimodal gain | マルチモーダル利得 | VLM minus blind |
# | bridge score | ブリッジスコア（橋渡し率） | the gain as a share of oracle minus blind |
# | complementary pair | 相補ペア | one question, two pictures, two answers |
# | paired bootstrap | 対応ありブートストラップ | resampling the same questions for both models |
# | hallucination | ハルシネーション（幻覚） | naming what is not there |
# | precision, recall, F1 | 適合率・再現率・F1値 | of the yeses said, of the things there, both |
# | yes ratio | Yes率 | how often the model says yes |
# | circular evaluation | 巡回評価 | right in every rotation of the options |
