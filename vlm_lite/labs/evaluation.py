"""The checks of notebook 05, first part: VQA accuracy, BLEU's precision, CIDEr's weights, Recall@K with five captions.

Each check first sees whether the learner's result is right on fresh inputs; if not, whether it equals what a known
mistake would give on the same inputs. N pictures, M captions.
"""

import math
import random
from collections import Counter

import torch

from vlm_lite.labs.core import close, exercise, explain

WORDS = "red blue dog cat tree bus lamp kite boat drum fork shoe".split()

# ---- the references


def _vqa_accuracy(prediction, answers):
    """An answer and those of ten people, compared as they stand -> accuracy in [0, 1], each left out in turn."""
    total = 0.0
    for k in range(len(answers)):
        others = answers[:k] + answers[k + 1 :]
        total += min(1, others.count(prediction) / 3)
    return total / len(answers)


def ngrams(words, n):
    """All runs of n words, as tuples, in order."""
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def _clipped_matches(candidate, references, n):
    """A list of words, a list of such lists -> (n-grams of the candidate that count as matches, its n-grams)."""
    said, best = Counter(ngrams(candidate, n)), Counter()
    for reference in references:
        best |= Counter(ngrams(reference, n))  # the larger count of each
    return sum((said & best).values()), sum(said.values())


def _rarity(captions_of_pictures):
    """For each picture its captions, each a list of n-grams -> {n-gram: log(pictures / pictures that have it)}."""
    having = Counter(
        gram
        for captions in captions_of_pictures
        for gram in {g for caption in captions for g in caption}
    )
    return {gram: math.log(len(captions_of_pictures) / count) for gram, count in having.items()}


def _caption_recall(similarity, picture_of, k):
    """similarity (N, M), picture_of (M,) -> Recall@k from pictures to captions, and from captions to pictures."""
    best = similarity.topk(k, dim=1).indices  # (N, k) captions
    to_text = (picture_of[best] == torch.arange(len(similarity))[:, None]).any(dim=1).float().mean()
    best = similarity.topk(k, dim=0).indices  # (k, M) pictures
    to_picture = (best == picture_of).any(dim=0).float().mean()
    return to_text, to_picture


# ---- the checks


@exercise(_vqa_accuracy)
def vqa_accuracy(learner):
    """An answer that none to all ten people gave, in random order; then one that differs in its capital only."""
    right_word, *others = random.sample(WORDS, 5)
    asked = []
    for matches in range(11):
        answers = [right_word] * matches + random.choices(others, k=10 - matches)
        random.shuffle(answers)
        if (
            matches > 1
        ):  # two who agree stand at the ends, so that leaving out one end only gives another score
            ends = [k for k, answer in enumerate(answers) if answer == right_word][:2]
            middle = [answer for k, answer in enumerate(answers) if k not in ends]
            answers = [right_word, *middle, right_word]
        asked.append(answers)
    found = [learner(right_word, list(answers)) for answers in asked]
    if not all(isinstance(value, int | float) for value in found):
        return f"return one number for one question; yours is a {type(found[0]).__name__}"
    right = [_vqa_accuracy(right_word, answers) for answers in asked]
    if close(found, right):
        if learner(right_word.title(), [right_word] * 10) != 0:
            return (
                "you change the text before you compare. Here it is compared as it stands; *when* the official "
                "tool normalises is the next section's surprise"
            )
        return None
    n = torch.arange(11).double()
    one_out = torch.tensor(
        [[min(1, (row[:j] + row[j + 1 :]).count(right_word) / 3) for j in (0, 9)] for row in asked]
    )
    within, loose = (
        [
            sum(min(most, (row[:k] + row[k + 1 :]).count(right_word) / wanted) for k in range(10))
            / 10
            for row in asked
        ]
        for most, wanted in ((1, 2), (10, 3))
    )
    full = torch.tensor(right).double()
    return explain(
        torch.tensor(found).double(),
        {
            "this is the short form, min(1, n / 3): it counts all ten at once. Leave each person out in turn, so that two "
            "matches give 0.6 and not 0.67": [(n / 3).clamp(max=1)],
            "only one person is left out: do it ten times, once for each, and take the mean": list(
                one_out.T
            ),
            "it grows above 1: three others who agree are enough, min(1, matches / 3)": [
                torch.tensor(loose),
                n / 3,
            ],
            "this is the share of people who agree; three of them are enough for a full score": [
                n / 10
            ],
            "this is percent; return a fraction from 0 to 1": [
                100 * full,
                100 * (n / 3).clamp(max=1),
            ],
            "an answer counts in part: it need not be what most people said": [
                (n > 5).double(),
                (n >= 5).double(),
                (n > 0).double(),
            ],
            "ten scores are added up and not averaged: divide by the number of people": [10 * full],
            "three others must agree for a full score; you ask for two": [torch.tensor(within)],
        },
    ) or (
        "for 0, 1, 2, ... 10 matches yours gives "
        + ", ".join(f"{value:.2f}" for value in found)
        + "; expected 0, 0.30, 0.60, 0.90 and then 1"
    )


@exercise(_clipped_matches)
def clipped_matches(learner):
    """A caption that repeats itself, against two references of which each has something the other lacks."""
    a, b, c, d, e, f = random.sample(WORDS, 6)
    candidate = [a, a, b, a, a, c, d, a, b, e, e]
    references = [[a, b, a, c, e, f], [f, a, b, a, b, a, c, d]]
    random.shuffle(references)

    def both(function):
        return torch.tensor(
            [function(1), function(2)]
        ).double()  # (2, 2): matches and n-grams, by n

    try:
        found = both(lambda n: tuple(learner(list(candidate), [list(r) for r in references], n)))
    except (TypeError, ValueError):
        return "return two numbers, the matches and how many n-grams the candidate has: BLEU adds up before it divides"
    if found.shape != (2, 2):
        return "return two numbers, (matches, n-grams of the candidate)"
    if close(found, both(lambda n: _clipped_matches(candidate, references, n))):
        return None

    def counted(clip, total=lambda n: len(candidate) - n + 1, size=lambda n: n):
        def of(n):
            said = Counter(ngrams(candidate, size(n)))
            of_each = [Counter(ngrams(reference, size(n))) for reference in references]
            return sum(
                min(count, clip([have[gram] for have in of_each], count))
                for gram, count in said.items()
            ), total(n)

        return both(of)

    most = len({*candidate})
    return explain(
        found,
        {
            "nothing is clipped: a word said four times counts four times although no reference has it so often. Count it "
            "at most as often as the reference that has it most": [
                counted(lambda have, count: count * any(have))
            ],
            "the references are added together: clip at the *largest* count in one of them": [
                counted(lambda h, _: sum(h))
            ],
            "only one reference is looked at": [
                counted(lambda have, _, k=k: have[k]) for k in (0, 1)
            ],
            "an n-gram counts only where every reference has it: one is enough": [
                counted(lambda have, _: min(have))
            ],
            "each different n-gram counts once: a set forgets how often": [
                counted(lambda have, _: any(have)),
                counted(lambda have, _: any(have), lambda n: len({*ngrams(candidate, n)})),
                counted(lambda have, _: max(have), lambda n: len({*ngrams(candidate, n)})),
            ],
            "you divide by the references' n-grams: that is recall. The second number counts the candidate's": [
                counted(lambda have, _: max(have), lambda n, r=r: len(r) - n + 1)
                for r in references
            ],
            "n is not used: pairs of words for n = 2, and so on": [
                counted(lambda have, _: max(have), lambda n: len(candidate), size=lambda n: 1)
            ],
            "a candidate of L words has L - n + 1 n-grams": [
                counted(lambda have, _: max(have), lambda n: len(candidate) - n),
                counted(lambda have, _: max(have), lambda n: len(candidate)),
                counted(lambda h, _: max(h), lambda n: most),
            ],
        },
    ) or (
        f"for n = 1 and 2 yours gives {found.tolist()}, expected "
        f"{both(lambda n: _clipped_matches(candidate, references, n)).tolist()}"
    )


@exercise(_rarity)
def rarity(learner):
    """Six pictures with two captions each; one n-gram is in all, one twice in a caption, one in both captions."""
    everywhere, twice, both, *rest = random.sample(WORDS, 9)
    pictures = [
        [[everywhere, rest[k]], [everywhere if k % 2 else rest[(k + 1) % 6]]] for k in range(6)
    ]
    pictures[0][0] += [twice, twice]
    for captions in pictures[1:3]:
        for caption in captions:
            caption.append(both)
    pictures = [[[(word,) for word in caption] for caption in captions] for captions in pictures]
    random.shuffle(pictures)
    right = _rarity(pictures)
    found = learner([[list(caption) for caption in captions] for captions in pictures])
    if not isinstance(found, dict):
        return f"return a dict, {{n-gram: its weight}}; yours is a {type(found).__name__}"
    if set(found) != set(right):
        return f"your dict has {len(found)} n-grams; expected the {len(right)} that stand in any caption, as they stand"
    if close(found, right):
        return None
    grams = sorted(right)
    values = torch.tensor([float(found[gram]) for gram in grams]).double()
    captions = [caption for each in pictures for caption in each]
    having = {gram: len(pictures) / math.exp(right[gram]) for gram in grams}
    in_captions = Counter(gram for caption in captions for gram in set(caption))
    times = Counter(gram for caption in captions for gram in caption)

    def of(function):
        return torch.tensor([function(gram) for gram in grams]).double()

    N, M = len(pictures), len(captions)
    return (
        explain(
            values,
            {
                "you count captions; an n-gram counts once for each *picture*, in however many of its captions it stands": [
                    of(lambda g: math.log(M / in_captions[g])),
                    of(lambda g: math.log(N / in_captions[g])),
                ],
                "you count how often it is said; count the pictures that have it at all": [
                    of(lambda g: math.log(N / times[g])),
                    of(lambda g: math.log(M / times[g])),
                ],
                "the logarithm is missing": [of(lambda g: N / having[g])],
                "the sign is turned: what is rare must weigh more": [
                    of(lambda g: math.log(having[g] / N))
                ],
                "that is how common it is; CIDEr weighs by how rare: log(N / count)": [
                    of(lambda g: having[g]),
                    of(lambda g: having[g] / N),
                ],
                "that logarithm is to base 2 or 10; take the natural one, math.log": [
                    of(lambda g: math.log2(N / having[g])),
                    of(lambda g: math.log10(N / having[g])),
                ],
                "1 is added somewhere: then what stands in every picture keeps a weight, and it tells nothing": [
                    of(lambda g: math.log(1 + N / having[g])),
                    of(lambda g: math.log((1 + N) / (1 + having[g]))),
                    of(lambda g: 1 + math.log(N / having[g])),
                    of(lambda g: math.log(N / (1 + having[g]))),
                ],
            },
        )
        or "the weights are not log(pictures / pictures that have the n-gram)"
    )


@exercise(_caption_recall)
def caption_recall(learner):
    """Nine pictures with two captions each, in random order, and a random similarity; Recall@3 both ways."""
    N, k = 9, 3
    while True:  # a draw on which the mistakes differ from the right answer and from each other
        picture_of = torch.arange(N).repeat(2)[torch.randperm(2 * N)]
        similarity = torch.randn(N, 2 * N)
        mine = picture_of == torch.arange(N)[:, None]  # (N, M)
        similarity[mine] += 1.0
        right = _caption_recall(similarity, picture_of, k)
        mistakes = _recall_mistakes(similarity, picture_of, mine, k)
        values = [tuple(map(float, v)) for many in mistakes.values() for v in many]
        if len({*values, tuple(map(float, right))}) == len(values) + 1 and right[0] != right[1]:
            break
    found = learner(similarity.clone(), picture_of.clone(), k)
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two numbers: from pictures to captions, and from captions to pictures"
    found = torch.stack([torch.as_tensor(value).double() for value in found])
    right = torch.stack(right).double()
    if found.shape == (2,) and close(found, right):
        return None
    return explain(
        found,
        {
            said: [torch.tensor([float(a), float(b)]) for a, b in many]
            for said, many in mistakes.items()
        },
    ) or (
        f"yours is {found.tolist()}, expected {right.tolist()}. Look at each direction alone: a picture is a hit where "
        "*any* of its captions is among its k nearest; a caption, where its picture is"
    )


def _recall_mistakes(similarity, picture_of, mine, k):
    N, M = similarity.shape
    to_text, to_picture = _caption_recall(similarity, picture_of, k)
    rank_of_text = similarity.argsort(dim=1, descending=True).argsort(
        dim=1
    )  # (N, M) place of each caption
    rank_of_picture = similarity.argsort(dim=0, descending=True).argsort(dim=0)
    hits = mine & (rank_of_text < k)  # (N, M)
    first = torch.tensor([(picture_of == n).nonzero()[0, 0] for n in range(N)])
    more, fewer = (
        _caption_recall(similarity, picture_of, k + 1),
        _caption_recall(similarity, picture_of, k - 1),
    )
    return {
        "the two directions are exchanged: pictures to captions comes first": [
            (to_picture, to_text)
        ],
        "from pictures to captions *one* of a picture's captions is enough; you want all of them": [
            ((hits.sum(1) == mine.sum(1)).float().mean(), to_picture)
        ],
        "from pictures to captions you count captions: a picture is one query, a hit or not": [
            (hits.sum() / M, to_picture),
            (hits.sum() / (N * k), to_picture),
        ],
        "only the first caption of each picture may be the hit: any of them will do": [
            (hits[torch.arange(N), first].float().mean(), to_picture)
        ],
        "caption j is taken to belong to picture j: the captions' pictures stand in picture_of": [
            (
                (rank_of_text[torch.arange(N), torch.arange(N)] < k).float().mean(),
                (rank_of_picture[torch.arange(N), torch.arange(N)] < k).float().mean(),
            )
        ],
        "you look at k + 1 candidates, one too many: places are counted from 0, so a place below k": [
            more
        ],
        "you look at the nearest k - 1 only": [fewer],
    }
