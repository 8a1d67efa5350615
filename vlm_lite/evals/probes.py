"""Does it look? The same questions asked with the image, without it, with another one, and with the scene in words.

    multimodal gain = VLM - blind                                how much the image is worth
    bridge score    = (VLM - blind) / (oracle - blind)           how much of what its language model could know came through

The bridge score is compared only under the same language model.
"""

from dataclasses import dataclass

import numpy as np
import pandas
import torch
from scipy.stats import bootstrap

from vlm_lite.files import UserError
from vlm_lite.lessons.conditions import ask_conditions
from vlm_lite.lessons.language import short_prompt
from vlm_lite.lessons.vqa import column, vqa_scores

CONDITIONS = ("vlm", "blind", "shuffled", "blank", "oracle")
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval, NaN where one question alone allows none.

    Where it is undefined all three are None, and `reason` says why.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def interval(self):
        """(value, low, high), or "undefined"."""
        return "undefined" if self.value is None else (self.value, self.low, self.high)

    def __str__(self):
        if self.value is None:
            return f"undefined ({self.reason})"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


BridgeScore = Interval


def bootstrap_interval(values):
    """The mean of per-question `values` (Q,) with its 95% percentile bootstrap interval (scipy.stats.bootstrap).

    Questions are resampled one by one, as if independent; several about one image make it a little too narrow.
    """
    (values,) = _scores(values)
    return Interval(float(values.mean()), *_bootstrap((values,), np.mean))


def multimodal_gain(vlm, blind):
    """Mean of vlm - blind over the same questions: per-question scores (Q,) each, resampled in pairs."""
    vlm, blind = _scores(vlm, blind)
    return bootstrap_interval(vlm - blind)


def bridge_score(vlm, blind, oracle):
    """(VLM - blind) / (oracle - blind) of the means of per-question scores (Q,), resampled in triples.

    Undefined (value None) unless the whole interval of oracle - blind lies above 0: else words would not have helped
    this language model either, and the ratio means nothing.
    """
    vlm, blind, oracle = _scores(vlm, blind, oracle)
    room = bootstrap_interval(oracle - blind)
    if not room.low > 0:  # also where it is NaN
        return BridgeScore(None, reason=f"oracle - blind is {room}, not clearly above 0")

    def ratio(vlm, blind, oracle, axis):
        room = np.maximum((oracle - blind).mean(axis), 1e-9)  # a rare resample has no room
        return (vlm - blind).mean(axis) / room

    scores = vlm, blind, oracle
    return BridgeScore(float(ratio(*scores, -1)), *_bootstrap(scores, ratio))


@dataclass(frozen=True)
class Summary:
    """Of `count` questions: accuracies in [0, 1] by condition, gain and bridge score, each with its interval."""

    count: int
    accuracy: dict[str, Interval]
    gain: Interval
    bridge: BridgeScore


@dataclass(frozen=True)
class ProbeResult(Summary):
    """What `run_probes` found: `answers` and per-question `scores` (Q,) by condition, in the order of the rows."""

    answers: dict[str, list[str]]
    scores: dict[str, np.ndarray]
    by_type: dict[str, Summary]

    @property
    def overall(self):
        return self

    def frame(self):
        """A DataFrame of accuracies in percent: a row a question type, a column a condition, then the bridge score."""
        table = {
            name: {
                "questions": part.count,
                **{condition: 100 * each.value for condition, each in part.accuracy.items()},
                "bridge score": part.bridge.value,
            }
            for name, part in {"all questions": self, **self.by_type}.items()
        }
        return pandas.DataFrame(table).T.astype({"questions": int})

    def percent(self):
        """{condition: (accuracy, low, high)} in percent."""
        return {
            name: tuple(100 * each for each in score.interval)
            for name, score in self.accuracy.items()
        }


@torch.no_grad()
def run_probes(
    vlm,
    features,
    rows,
    *,
    blank_features,
    image_ids,
    prompt=short_prompt,
    batch_size=256,
    seed=0,
    max_new_tokens=4,
):
    """Ask every question of `rows` under five conditions and score the answers; returns a ProbeResult.

    vlm: has generate(features or None, prompts, max_new_tokens=...) -> list of texts, greedy (a prompt that comes again
    without an image, or with the blank one, is asked once).
    features (N, T, D): the frozen vision features, of the images with the N image_ids, as `image_tensor` returns them.
    rows: dicts or a Dataset with question, answers, question_type, image_id and description (for the oracle).
    blank_features (T, D): those of an empty image. prompt: question -> prompt.
    Conditions: vlm (its own image), blind (no image), shuffled (another image: no image keeps its own), blank,
    oracle (no image, the description before the prompt; left out where no row has one).
    """
    prompts = [prompt(question) for question in column(rows, "question")]
    if not prompts:
        raise UserError("there are no questions to ask; expected at least one row.")
    own, other = _pictures(column(rows, "image_id"), image_ids, seed)
    blank = torch.as_tensor(blank_features).float().reshape(features.shape[1:])

    descriptions, told = column(rows, "description"), ()
    if any(descriptions):
        if not all(descriptions):
            raise UserError(
                f"rows[{list(map(bool, descriptions)).index(False)}].description is empty, others are not. Describe every "
                "image, or none."
            )
        told = [f"{d} {p}" for d, p in zip(descriptions, prompts, strict=True)]
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    answers = ask_conditions(vlm, features, blank, own, other, prompts, told, **options)
    scores = {name: vqa_scores(given, rows) for name, given in answers.items()}
    types = np.array(list(map(str, column(rows, "question_type"))))

    def summary(chosen):
        part = {name: values[chosen] for name, values in scores.items()}
        bridge = BridgeScore(None, reason="no descriptions, so no oracle")
        if "oracle" in part:
            bridge = bridge_score(part["vlm"], part["blind"], part["oracle"])
        accuracy = {name: bootstrap_interval(values) for name, values in part.items()}
        return int(chosen.sum()), accuracy, multimodal_gain(part["vlm"], part["blind"]), bridge

    by_type = {name: Summary(*summary(types == name)) for name in sorted(set(types.tolist()))}
    return ProbeResult(*summary(types == types), answers, scores, by_type)


def _pictures(asked, image_ids, seed):
    """Numbers of images, two lists of Q: each row's own image, and another one, never with the same image_id."""
    number = {image_id: k for k, image_id in enumerate(image_ids)}
    ids = list(dict.fromkeys(asked))
    lacking = [image_id for image_id in ids if image_id not in number]
    if lacking or len(ids) < 2:
        raise UserError(
            f"the questions are about {len(ids)} images, of which image_ids lacks {lacking[:3]}; expected two or more (the "
            "shuffled condition needs another), each with its features."
        )
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    order = [ids[i] for i in order]  # one cycle: none keeps its own
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [number[i] for i in asked], [number[following[i]] for i in asked]


def _scores(*arrays):
    """Each as a float array (Q,), all of one length and finite."""
    arrays = [np.asarray(values, dtype=float) for values in arrays]
    for values in arrays:
        if values.shape != (arrays[0].size,) or not values.size or not np.isfinite(values).all():
            raise UserError(
                f"scores have the shapes {[each.shape for each in arrays]}; expected one finite score a question, at "
                "least one, and as many for each condition."
            )
    return arrays


def _bootstrap(samples, statistic):
    """(low, high) of the percentile bootstrap over questions, which draws the same questions at each call."""
    if len(samples[0]) < 2:
        return float("nan"), float("nan")
    options = dict(n_resamples=RESAMPLES, batch=200, rng=np.random.default_rng(0))
    found = bootstrap(
        samples, statistic, paired=True, vectorized=True, method="percentile", **options
    )
    return tuple(map(float, found.confidence_interval))
