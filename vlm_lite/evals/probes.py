"""Does it look? The same questions asked with the picture, without it, with another one, and with the scene in words.

    multimodal gain = VLM - blind                                how much the picture is worth
    bridge score    = (VLM - blind) / (oracle - blind)           how much of what this brain could know came through

The bridge score is compared only under the same language model.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas
import torch
from scipy.stats import bootstrap

from vlm_lite.evals.vqa import column, vqa_scores
from vlm_lite.files import UserError

CONDITIONS = ("vlm", "blind", "shuffled", "blank", "oracle")
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval; `low` and `high` are NaN where one question alone allows none."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class BridgeScore:
    """The bridge score and its interval, or None for all three and the reason why it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def interval(self):
        """(value, low, high), or "undefined"."""
        return "undefined" if self.value is None else (self.value, self.low, self.high)

    def __str__(self):
        return (
            f"undefined ({self.reason})"
            if self.value is None
            else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        )


def bootstrap_interval(values, confidence=0.95, seed=0):
    """The mean of per-question `values` (Q,) with its percentile bootstrap interval (scipy.stats.bootstrap).

    Questions are resampled one by one, as if independent; several about one picture make it a little too narrow.
    """
    values = _scores(values=values)[0]
    return Interval(float(values.mean()), *_bootstrap((values,), np.mean, confidence, seed))


def multimodal_gain(vlm, blind, confidence=0.95, seed=0):
    """Mean of vlm - blind over the same questions: per-question scores (Q,) each, resampled in pairs."""
    vlm, blind = _scores(vlm=vlm, blind=blind)
    return bootstrap_interval(vlm - blind, confidence, seed)


def bridge_score(vlm, blind, oracle, confidence=0.95, seed=0):
    """(VLM - blind) / (oracle - blind) of the means of per-question scores (Q,), resampled in triples.

    Undefined (value None) unless the whole interval of oracle - blind lies above 0: else words would not have helped
    this language model either, and the ratio means nothing.
    """
    vlm, blind, oracle = _scores(vlm=vlm, blind=blind, oracle=oracle)
    room = bootstrap_interval(oracle - blind, confidence, seed)
    if not room.low > 0:  # also where it is NaN
        return BridgeScore(None, reason=f"oracle - blind is {room}, not clearly above 0")

    def ratio(vlm, blind, oracle, axis):
        room = np.maximum((oracle - blind).mean(axis), 1e-9)  # a rare resample has no room
        return (vlm - blind).mean(axis) / room

    low, high = _bootstrap((vlm, blind, oracle), ratio, confidence, seed)
    return BridgeScore(float(ratio(vlm, blind, oracle, -1)), low, high)


@dataclass(frozen=True)
class Summary:
    """Of `count` questions: accuracies in [0, 1] by condition, gain and bridge score, each with its interval."""

    count: int
    accuracy: dict[str, Interval]
    gain: Interval
    bridge: BridgeScore


@dataclass(frozen=True)
class ProbeResult:
    """What `run_probes` found: `answers` and per-question `scores` (Q,) by condition, in the order of the rows."""

    answers: dict[str, list[str]]
    scores: dict[str, np.ndarray]
    overall: Summary
    by_type: dict[str, Summary]
    normalize: str
    confidence: float

    @property
    def accuracy(self):
        return self.overall.accuracy

    @property
    def gain(self):
        return self.overall.gain

    @property
    def bridge(self):
        return self.overall.bridge

    def frame(self):
        """A DataFrame of accuracies in percent: a row a question type, a column a condition, then the bridge score."""
        rows = {"all questions": self.overall, **self.by_type}
        table = {
            name: {"questions": part.count}
            | {condition: 100 * part.accuracy[condition].value for condition in self.scores}
            | {"bridge score": part.bridge.value}
            for name, part in rows.items()
        }
        return pandas.DataFrame(table).T.astype({"questions": int})

    def percent(self):
        """{condition: (accuracy, low, high)} in percent."""
        return {
            name: tuple(100 * x for x in (score.value, score.low, score.high))
            for name, score in self.accuracy.items()
        }

    def table(self):
        """Printable text: percent by question type and condition, then gain and bridge score with their intervals."""
        rows = [("all questions", self.overall), *self.by_type.items()]
        width = max(len(name) for name, _ in rows)
        lines = [
            f"{'accuracy in %':<{width}} {'asked':>6}"
            + "".join(f"{name:>9}" for name in self.scores)
            + f"{'gain':>7}{'bridge':>8}"
        ]
        for name, part in rows:
            bridge = "-" if part.bridge.value is None else f"{part.bridge.value:.2f}"
            lines.append(
                f"{name:<{width}} {part.count:>6}"
                + "".join(
                    f"{100 * part.accuracy[condition].value:>9.1f}" for condition in self.scores
                )
                + f"{100 * part.gain.value:>7.1f}{bridge:>8}"
            )
        lines += [
            f"multimodal gain (vlm - blind): {self.gain}",
            f"bridge score: {self.bridge}",
            f"[{100 * self.confidence:g}% bootstrap intervals over questions; VQA accuracy, normalize="
            f"{self.normalize!r}]",
        ]
        return "\n".join(lines)


@torch.no_grad()
def run_probes(
    vlm,
    features,
    rows,
    *,
    blank_features,
    prompt=None,
    batch_size=256,
    seed=0,
    normalize="official",
    max_new_tokens=4,
    confidence=0.95,
    image_ids=None,
):
    """Ask every question of `rows` under five conditions and score the answers; returns a ProbeResult.

    vlm: has generate(features or None, prompts, max_new_tokens=...) -> list of texts, greedy (a prompt that comes again
    without a picture, or with the blank one, is asked once).
    features (N, T, D): the frozen vision features. rows: dicts or a Dataset with question, answers, question_type,
    image_id, description (for the oracle) and image_index, the picture's row in `features`. Instead of image_index one
    may pass image_ids, the image_id of each row of `features`, as `image_tensor` returns them.
    blank_features (T, D): those of an empty picture. prompt: question -> prompt, by default the short-answer prompt.
    Conditions: vlm (its own picture), blind (no picture), shuffled (another picture: no picture keeps its own), blank,
    oracle (no picture, the description before the prompt; left out where no row has one).
    """
    if prompt is None:
        from vlm_lite.data.language import short_prompt as prompt
    if not len(rows):
        raise UserError("there are no questions to ask; expected at least one row.")
    prompts = [prompt(question) for question in column(rows, "question")]
    own, other = _pictures(rows, image_ids, len(features), seed)
    ask = partial(_ask, vlm, batch_size, max_new_tokens)
    blank = torch.as_tensor(blank_features).reshape(features.shape[1:])
    answers = {
        "vlm": ask(prompts, lambda at: features[own[at]]),
        "blind": _once(ask, prompts, lambda at: None),
        "shuffled": ask(prompts, lambda at: features[other[at]]),
        "blank": _once(ask, prompts, lambda at: blank.expand(len(at), *blank.shape)),
    }
    descriptions = column(rows, "description")
    if all(descriptions):
        told = [
            f"{description} {text}" for description, text in zip(descriptions, prompts, strict=True)
        ]
        answers["oracle"] = _once(ask, told, lambda at: None)
    elif any(descriptions):
        index = next(i for i, description in enumerate(descriptions) if not description)
        raise UserError(
            f"rows[{index}].description is empty, others are not. Describe every picture, or none."
        )
    scores = {name: vqa_scores(given, rows, normalize) for name, given in answers.items()}
    types = np.array([str(value) for value in column(rows, "question_type")])
    by_type = {
        name: _summary(scores, types == name, confidence, seed)
        for name in sorted(set(types.tolist()))
    }
    overall = _summary(scores, np.ones(len(types), bool), confidence, seed)
    return ProbeResult(answers, scores, overall, by_type, normalize, confidence)


def _pictures(rows, feature_ids, count, seed):
    """Index tensors (Q,) into the features: each row's own picture, and another one, never with the same image_id."""
    image_ids = column(rows, "image_id")
    if feature_ids is None:
        own = torch.tensor(column(rows, "image_index"))
    else:
        index = {image_id: row for row, image_id in enumerate(feature_ids)}
        own = torch.tensor([index.get(image_id, -1) for image_id in image_ids])
    if own.min() < 0 or own.max() >= count:
        raise UserError(
            f"image_index runs from {own.min()} to {own.max()}; expected 0 to {count - 1}, rows of "
            "`features` (-1: an image_id that image_ids lacks)."
        )
    row_of = dict(zip(image_ids, own.tolist(), strict=True))  # image_id -> its row of features
    ids = list(row_of)
    if len(ids) < 2:
        raise UserError(
            f"all questions are about one picture (image_id {ids[0]}); the shuffled condition needs two."
        )
    order = [
        ids[i] for i in torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    ]
    next_one = dict(
        zip(order, order[1:] + order[:1], strict=True)
    )  # one cycle, so that none keeps its own
    return own, torch.tensor([row_of[next_one[image_id]] for image_id in image_ids])


def _ask(vlm, batch_size, max_new_tokens, prompts, pick):
    """The model's answers, a batch at a time; `pick(indices)` gives the features (B, T, D) of a batch, or None."""
    answers = []
    for at in torch.arange(len(prompts)).split(batch_size):
        features = pick(at)
        answers += vlm.generate(
            None if features is None else features.float(),
            [prompts[i] for i in at.tolist()],
            max_new_tokens=max_new_tokens,
        )
    return answers


def _once(ask, prompts, pick):
    """As `ask`, but each different prompt is asked once."""
    unique = list(dict.fromkeys(prompts))
    answer = dict(zip(unique, ask(unique, pick), strict=True))
    return [answer[text] for text in prompts]


def _summary(scores, chosen, confidence, seed):
    part = {name: values[chosen] for name, values in scores.items()}
    bridge = (
        bridge_score(part["vlm"], part["blind"], part["oracle"], confidence, seed)
        if "oracle" in part
        else BridgeScore(None, reason="no descriptions, so no oracle")
    )
    return Summary(
        int(chosen.sum()),
        {name: bootstrap_interval(v, confidence, seed) for name, v in part.items()},
        multimodal_gain(part["vlm"], part["blind"], confidence, seed),
        bridge,
    )


def _scores(**arrays):
    """Each as a float array (Q,), all of one length and finite."""
    arrays = {name: np.asarray(values, dtype=float) for name, values in arrays.items()}
    first, *_ = arrays.values()
    for name, values in arrays.items():
        if (
            values.ndim != 1
            or not len(values)
            or values.shape != first.shape
            or not np.isfinite(values).all()
        ):
            raise UserError(
                f"{name} has shape {values.shape}; expected one finite score a question, at least one, and "
                f"as many for each condition ({', '.join(arrays)})."
            )
    return list(arrays.values())


def _bootstrap(samples, statistic, confidence, seed):
    """(low, high) of the percentile bootstrap over questions; the same seed draws the same questions."""
    if len(samples[0]) < 2:
        return float("nan"), float("nan")
    interval = bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        batch=200,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
