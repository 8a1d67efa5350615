"""The figures of the course: one function each, which takes data and returns a Figure.

Scores are percentages (0 to 100), recalls and probabilities fractions (0 to 1). A learner's `guess`, made before the
result is seen, is a dashed line. Show a figure by making it a cell's last expression, or with `display(...)`.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from vlm_lite.figures import (
    BLUE,
    GREEN,
    GREY,
    GUESS,
    INK,
    LINE,
    NIGHT,
    NIGHT_FRAME,
    NIGHT_INK,
    ORANGE,
    PALE,
    SKY,
    YELLOW,
    Figure,
    array,
    enlarge,
    style,
    styled,
    wrap,
)
from vlm_lite.models.positions import position_cosines
from vlm_lite.panels import (
    answer_table,
    ask_panel,
    controls_bars,
    losses,
    museum_wall,
    scoreboard,
)

__all__ = [
    "answer_table",
    "ask_panel",
    "attention_over_image",
    "by_type_bars",
    "controls_bars",
    "gain_bars",
    "joint_space",
    "loss_curve",
    "percent_table",
    "losses",
    "museum_wall",
    "position_similarity",
    "power_law",
    "recall_bars",
    "scoreboard",
    "seed_ranges",
    "show_images",
    "similarity_matrix",
    "style",
]
CHANCE = {"color": GREY, "linestyle": ":", "linewidth": 1.6}
ROWS = {  # condition -> (label, colour, hatch)
    "blind": ("blind (question only)", "white", "////"),
    "blank": ("blank image", PALE, "...."),
    "shuffled": ("shuffled images", ORANGE, "\\\\\\\\"),
    "vlm": ("the VLM", BLUE, ""),
    "oracle": ("oracle (scene in words)", GREEN, "xxxx"),
}


@styled
def show_images(images, titles=None, columns=5, size=144):
    """Pictures in a dark frame, `size` pixels each, with their titles beneath.

    images: uint8 (N, 3, H, W), or a list of PIL images. titles: N strings, or None.
    """
    gap, columns = 14, min(columns, len(images))
    titles = (
        [wrap(title, size - 2, 9) for title in titles] if titles is not None else [""] * len(images)
    )
    rows = [
        range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)
    ]
    depths = [
        max((titles[i].count("\n") + 1) * LINE + 8 if titles[i] else 0 for i in row) for row in rows
    ]
    figure = Figure(
        width=columns * (size + gap) + gap,
        height=len(rows) * (size + gap) + sum(depths) + gap,
        label=f"{len(images)} images",
        facecolor=NIGHT,
    )
    top = gap
    for row, depth in zip(rows, depths, strict=True):
        for column, i in enumerate(row):
            left = gap + column * (size + gap)
            figure.picture_at(images[i], left, top, size, frame=NIGHT_FRAME)
            figure.text_at(
                left + size / 2, top + size + 7, titles[i], ha="center", color=NIGHT_INK, fontsize=9
            )
        top += size + gap + depth
    return figure


@styled
def loss_curve(
    history, *, band=None, chance=None, guess=None, ylabel="loss", xlabel="training step", title=""
):
    """A live loss over the recorded band of several seeds, with how much of it lies inside, and how much usually does.

    history: a train.History, or a pair (steps, losses). band: dict of lists `steps`, `low`, `high`, `mean`, and
    optionally `seeds`, their number n: of a further run's points, (n - 1) / (n + 1) lie inside on average.
    chance: the loss of a model that knows nothing. guess: the learner's final loss.
    """
    steps, losses = (
        array(x)
        for x in (history if isinstance(history, tuple) else (history.steps, history.losses))
    )
    figure = Figure(width=680, height=350, label=f"{ylabel} against {xlabel}", layout="constrained")
    axes = figure.subplots()
    if band is not None:
        recorded, low, high, mean = (array(band[key]) for key in ("steps", "low", "high", "mean"))
        several = band.get("seeds", 2) > 1  # one seed has no range
        name = f"recorded, {band['seeds']} seeds" if "seeds" in band else "recorded seeds"
        if several:
            axes.fill_between(
                recorded, low, high, color=SKY, alpha=0.35, linewidth=0, label=f"{name}: range"
            )
        axes.plot(
            recorded,
            mean,
            color=GREY,
            linestyle="-.",
            linewidth=1.2,
            label=f"{name}: mean" if several else "recorded, one seed",
        )
        held = (steps >= recorded[0]) & (steps <= recorded[-1])
        if several and held.any():
            floor, roof = (np.interp(steps[held], recorded, edge) for edge in (low, high))
            share = np.mean((floor <= losses[held]) & (losses[held] <= roof))
            title = f"{title}\n" * bool(title)
            title += (
                f"inside the range of {band.get('seeds', 'the')} seeds at {share:.0%} of points"
            )
            if (
                "seeds" in band
            ):  # of n + 1 like runs each is as likely as another to be the highest, or the lowest
                title += f" (a further seed: about {(band['seeds'] - 1) / (band['seeds'] + 1):.0%})"
    axes.plot(steps, losses, color=BLUE, label="this run")
    axes.plot(steps[-1:], losses[-1:], "o", color=BLUE, markersize=5, clip_on=False)
    axes.annotate(
        f"{losses[-1]:.2f}",
        (steps[-1], losses[-1]),
        (6, 0),
        textcoords="offset points",
        va="center",
        color=BLUE,
        fontweight="bold",
        annotation_clip=False,
    )
    if chance is not None:
        axes.axhline(chance, label=f"knows nothing: {chance:.2f}", **CHANCE)
    if guess is not None:
        axes.axhline(guess, label=f"my guess: {guess:g}", **GUESS)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.set_ylim(bottom=min(0, losses.min()))
    axes.margins(x=0.01)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def similarity_matrix(
    before,
    after,
    captions=None,
    images=None,
    *,
    names=("before training", "after training"),
    label="cosine similarity",
):
    """Two heat maps (N, N) side by side on one colour scale: row i is image i, column j is caption j.

    images: N, drawn at the left of the rows. captions: N strings, listed beneath with their numbers.
    """
    maps = [array(before), array(after)]
    count = len(maps[0])
    side = max(240, min(40 * count, 330))
    left = 92 if images is not None else 56
    lines = [
        wrap(f"{i + 1}  {caption}", 2 * side - 20, 9, max_lines=1)
        for i, caption in enumerate(captions or [])
    ]
    width = left + 2 * side + 120
    figure = Figure(
        width=width,
        height=40 + side + 46 + len(lines) * LINE + 8,
        label=f"{label} {names[0]}, {names[1]}",
    )
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    for column, (name, values) in enumerate(zip(names, maps, strict=True)):
        start = left + column * (side + 24)
        axes = figure.axes_at(start, 34, side, side)
        shown = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        axes.set(title=name, xlabel="caption", xticks=range(count), xticklabels=range(1, count + 1))
        axes.set(
            yticks=range(count),
            yticklabels=range(1, count + 1) if column == 0 and images is None else [],
        )
        axes.grid(False)
        if count > 12:
            axes.set(xticks=[], yticks=[])
        if column == 0:
            axes.set_ylabel("image", labelpad=35 if images is not None else 4)
        if count <= 8:
            for (row, col), value in np.ndenumerate(values):
                bright = value > (low + high) / 2
                axes.text(
                    col,
                    row,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=INK if bright else "white",
                    fontweight="bold" if row == col else "normal",
                )
    if images is not None:
        cell = side / count
        thumbnail = int(min(cell - 3, 34))
        for i, image in enumerate(images):
            figure.picture_at(
                image, left - thumbnail - 5, round(34 + (i + 0.5) * cell - thumbnail / 2), thumbnail
            )
    bar = figure.colorbar(
        shown, cax=figure.axes_at(left + 2 * side + 40, 34, 14, side), label=label
    )
    bar.outline.set_visible(False)
    for i, line in enumerate(lines):
        figure.text_at(left, 34 + side + 44 + i * LINE, line, fontsize=9)
    return figure


@styled
def recall_bars(recall, *, guess=None, title="Retrieval"):
    """Recall@K both ways as bars, over what guessing gives and under what the captions allow.

    recall: {row: {"R@1": 0.7, "R@5": 0.9}} with rows "image to text", "text to image", and "chance" and "ceiling" as
    lines; other rows are not drawn. guess: {"R@5": 0.8} or a number for every K.
    """
    looks = {
        "image to text": ("image to caption", BLUE, ""),
        "text to image": ("caption to image", SKY, "////"),
    }
    results = {way: recall[way] for way in looks if way in recall}
    ks = list(next(iter(results.values())))
    figure = Figure(width=640, height=330, label=title, layout="constrained")
    axes = figure.subplots()
    width = 0.78 / len(results)
    for i, (direction, recalls) in enumerate(results.items()):
        name, colour, hatch = looks[direction]
        places = np.arange(len(ks)) + (i - (len(results) - 1) / 2) * width
        values = [100 * recalls[k] for k in ks]
        axes.bar(
            places, values, width * 0.94, color=colour, hatch=hatch, edgecolor="white", label=name
        )
        for x, value in zip(places, values, strict=True):
            inside = value >= 12
            axes.text(
                x,
                value - 2 if inside else value + 2,
                f"{value:.1f}",
                ha="center",
                fontsize=8.5,
                va="top" if inside else "bottom",
                color="white" if inside and not hatch else INK,
                bbox={"facecolor": colour if inside else "white", "edgecolor": "none", "pad": 1.5},
            )
    guess = {k: guess for k in ks} if isinstance(guess, int | float) else guess
    for levels, name, look in (
        (recall.get("chance"), "chance", CHANCE),
        (
            recall.get("ceiling"),
            "ceiling of the captions",
            {"color": INK, "linestyle": "-", "linewidth": 1.3},
        ),
        (guess, "my guess", GUESS),
    ):
        for i, k in enumerate(k for k in ks if k in (levels or {})):
            x = ks.index(k)
            axes.plot(
                [x - 0.47, x + 0.47], [100 * levels[k]] * 2, label=name if i == 0 else None, **look
            )
    axes.set(
        xticks=range(len(ks)),
        xticklabels=ks,
        ylim=(0, 108),
        yticks=range(0, 101, 20),
        ylabel="queries with a right hit\namong the first K (%)",
        title=title,
    )
    axes.grid(axis="x", visible=False)
    handles = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True),
        key=lambda pair: isinstance(pair[0], Line2D),
    )
    figure.legend(
        *zip(*handles, strict=True), loc="outside lower center", ncols=3 if len(handles) > 4 else 4
    )
    return figure


def percent_table(rows):
    """{row: {column: a fraction}} as a table of percentages with one decimal."""
    return pd.DataFrame(rows).T.map("{:.1%}".format)


def _interval(score):
    """(value, distance down, distance up) of a number or of (value, low, high)."""
    value, low, high = score if isinstance(score, tuple | list) else (score, score, score)
    return value, max(0, value - low), max(0, high - value)


def _accuracy_rows(axes, names):
    """Rows of bars with their names, from the top down, over a scale of accuracy."""
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 106), xticks=range(0, 101, 20))
    axes.set_xlabel("VQA accuracy (%)")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


@styled
def gain_bars(
    *, vlm, blind, shuffled=None, blank=None, oracle=None, bridge=None, guess=None, title=""
):
    """Does it look? Scores in percent beside the blind and the oracle line, and the bridge score in the title.

    Each score is a number or (value, low, high), the interval drawn as a whisker. bridge: None to compute
    (vlm - blind) / (oracle - blind), a number or (value, low, high) to print, or "undefined". guess: the VLM's score.
    """
    scores = {"blind": blind, "blank": blank, "shuffled": shuffled, "vlm": vlm, "oracle": oracle}
    scores = {name: _interval(score) for name, score in scores.items() if score is not None}
    gain = scores["vlm"][0] - scores["blind"][0]
    head = f"multimodal gain {gain:+.1f} points"
    if oracle is not None and bridge is None:
        span = scores["oracle"][0] - scores["blind"][0]
        bridge = gain / span if span > 0 else "undefined"
    if bridge is not None:
        value, down, up = (bridge, 0, 0) if isinstance(bridge, str) else _interval(bridge)
        head += f",   bridge score {value if isinstance(value, str) else format(value, '.2f')}"
        head += f" ({value - down:.2f} to {value + up:.2f})" if down or up else ""
    figure = Figure(
        width=680,
        height=150 + 34 * len(scores),
        label=f"{title} {head}".strip(),
        layout="constrained",
    )
    axes = figure.subplots()
    for row, (name, (value, down, up)) in enumerate(scores.items()):
        label, colour, hatch = ROWS[name]
        axes.barh(
            row,
            value,
            0.66,
            color=colour,
            hatch=hatch,
            edgecolor=INK if name != "vlm" else BLUE,
            linewidth=0.8,
        )
        if down or up:
            axes.errorbar(value, row, xerr=[[down], [up]], color=INK, capsize=4, linewidth=1.4)
        axes.text(
            value + up + 1.2,
            row,
            f"{value:.1f}",
            va="center",
            fontweight="bold" if name == "vlm" else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
        )
    axes.axvline(
        scores["blind"][0], color=INK, linestyle="--", linewidth=1.1, zorder=0.9, label="blind"
    )
    if oracle is not None:
        axes.axvline(
            scores["oracle"][0],
            color=GREEN,
            linestyle="-.",
            linewidth=1.3,
            zorder=0.9,
            label="oracle",
        )
    if guess is not None:
        axes.axvline(guess, label=f"my guess: {guess:g}", **GUESS)
    _accuracy_rows(axes, [ROWS[name][0] for name in scores])
    figure.suptitle(
        f"{title}\n{head}" if title else head, x=0.01, ha="left", fontsize=10.5, fontweight="bold"
    )
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def by_type_bars(table, *, title="By type of question"):
    """Per question type: the VLM's score as a bar, the blind model's as a bar mark, the oracle's as a diamond.

    table: {"colour": {"vlm": 80.1, "blind": 20.3, "oracle": 97.0}, ...} in percent; blind and oracle may be absent.
    """
    figure = Figure(width=640, height=120 + 30 * len(table), label=title, layout="constrained")
    axes = figure.subplots()
    for row, scores in enumerate(table.values()):
        axes.barh(row, scores["vlm"], 0.6, color=BLUE, alpha=0.85)
        place = min(scores["vlm"], 99) - 1
        if place - 8 <= scores.get("oracle", -99) <= place + 2.5:
            place = scores["oracle"] - 2.5  # left of the diamond, which would cover it
        axes.text(
            place,
            row,
            f"{scores['vlm']:.0f}" if scores["vlm"] >= 8 else "",
            ha="right",
            va="center",
            color="white",
            fontsize=8.5,
            fontweight="bold",
        )
        if "blind" in scores:
            axes.plot([scores["blind"]] * 2, [row - 0.42, row + 0.42], color="white", linewidth=4.5)
            axes.plot([scores["blind"]] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=2.2)
        if "oracle" in scores:
            axes.plot(
                scores["oracle"],
                row,
                "D",
                color=GREEN,
                markeredgecolor="white",
                markersize=8,
                clip_on=False,
            )
    axes.set_title(title)
    _accuracy_rows(axes, list(table))
    looks = {
        "blind": {"color": INK, "marker": "|", "markersize": 11, "markeredgewidth": 2.2},
        "oracle": {"color": GREEN, "marker": "D"},
    }
    marks = [
        Line2D([], [], linestyle="none", label=name, **look)
        for name, look in looks.items()
        if any(name in scores for scores in table.values())
    ]
    figure.legend(
        handles=[Patch(color=BLUE, alpha=0.85, label="the VLM"), *marks],
        loc="outside lower center",
        ncols=3,
    )
    return figure


@styled
def attention_over_image(image, maps, *, titles=None, columns=5, size=128):
    """The image, then one copy per map with the attended patches outlined: the wider the frame, the larger the weight.

    image: (3, H, W) uint8 or PIL. maps: (Q, h, w) weights on the patch grid, such as (Q, 4, 4); each map's frames are
    scaled to its own maximum, and weights below a tenth of it have none.
    """
    maps, base = array(maps), enlarge(image, size)
    titles = list(titles) if titles is not None else [f"query {i + 1}" for i in range(len(maps))]
    notes = ["the image"] + [
        f"{title}  (max {weights.max():.2f})" if weights.max() < 0.995 else title
        for title, weights in zip(titles, maps, strict=True)
    ]
    gap, columns, depth = 12, min(columns, len(notes)), 24
    figure = Figure(
        width=columns * (size + gap) + gap,
        height=math.ceil(len(notes) / columns) * (size + gap + depth) + gap,
        label="attention over the image",
        facecolor=NIGHT,
    )
    (rows, cols), inset = maps.shape[1:], 0.01
    for i, (weights, note) in enumerate(zip([None, *maps], notes, strict=True)):
        left, top = gap + i % columns * (size + gap), gap + i // columns * (size + gap + depth)
        axes = figure.axes_at(left, top, size, size)
        axes.imshow(base, interpolation="nearest", aspect="auto", extent=(0, 1, 1, 0))
        axes.set(xticks=np.arange(1, cols) / cols, yticks=np.arange(1, rows) / rows)
        axes.tick_params(labelbottom=False, labelleft=False)
        axes.grid(color=NIGHT_FRAME, linewidth=0.5)
        axes.set_axisbelow(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=NIGHT_FRAME)
        if weights is not None:
            share = weights / max(weights.max(), 1e-12)
            for row, col in zip(*np.nonzero(share >= 0.1), strict=True):
                axes.add_patch(
                    Rectangle(
                        (col / cols + inset, row / rows + inset),
                        1 / cols - 2 * inset,
                        1 / rows - 2 * inset,
                        fill=False,
                        edgecolor=YELLOW,
                        linewidth=3.2 * share[row, col],
                        zorder=3,
                    )
                )
        figure.text_at(
            left + size / 2,
            top + size + 6,
            wrap(note, size + 8, 8.5, 1),
            ha="center",
            color=NIGHT_INK,
            fontsize=8.5,
        )
    return figure


@styled
def position_similarity(tables):
    """One panel for each table of position embeddings, and in it one small map for each position.

    A map shows the cosine of that position's vector with every position's, after the mean of the table (which says
    nothing of where) is subtracted. tables: {title: (1, 1 + grid², D)}, as a ViT's `pos_embed`, the class token's first.
    """
    figure = Figure(
        width=70 + 250 * len(tables),
        height=300,
        label="cosine similarity of position embeddings",
        layout="constrained",
    )
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        maps = array(position_cosines(table))  # row, column, row, column
        grid = len(maps)
        maps = np.pad(maps, [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=np.nan)
        maps = maps.transpose(0, 2, 1, 3).reshape(grid * (grid + 1), -1)[:-1, :-1]
        shown = axes.imshow(maps, cmap="cividis", vmin=-1, vmax=1, interpolation="nearest")
        centres = [(grid - 1) / 2 + (grid + 1) * k for k in range(grid)]
        names = range(1, grid + 1)
        axes.set(title=title, xlabel="column of the position")
        axes.set(xticks=centres, yticks=centres, xticklabels=names, yticklabels=names)
        axes.grid(False)
    panels[0].set_ylabel("row of the position")
    figure.colorbar(shown, ax=list(panels), label="cosine", shrink=0.8).outline.set_visible(False)
    return figure


@styled
def joint_space(clouds):
    """Images and captions on the first two principal axes of each panel's joint space, with their modality gap.

    clouds: {name of the panel: (image_embeds (N, P), text_embeds (M, P))}, of unit length.
    """
    figure = Figure(width=680, height=330, label="the joint space", layout="constrained")
    panels = figure.subplots(1, len(clouds), squeeze=False)[0]
    for axes, (name, embeds) in zip(panels, clouds.items(), strict=True):
        points = np.concatenate([array(x) for x in embeds])
        points = points - points.mean(axis=0)
        points = points @ np.linalg.svd(points, full_matrices=False)[2][:2].T  # (N + M, 2)
        count = len(embeds[0])
        axes.plot(*points[:count].T, "o", markersize=2.5, color=BLUE, label="images")
        axes.plot(*points[count:].T, "x", markersize=3.5, color=ORANGE, label="captions")
        gap = np.linalg.norm(array(embeds[0]).mean(axis=0) - array(embeds[1]).mean(axis=0))
        axes.set(title=f"{name}: gap {gap:.2f}")
        axes.set(xlabel="first principal axis", ylabel="second principal axis")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def seed_ranges(rows, *, live=None, xlabel, title=""):
    """One line a row: the values of every seed, their range, and a dotted line through the first row's mean.

    rows: {name: fractions, one a seed}. live: (name of a row, this run's fraction).
    """
    figure = Figure(width=680, height=90 + 26 * len(rows), label=xlabel, layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(rows.values()):
        values = 100 * array(values)
        axes.hlines(place, values.min(), values.max(), color=SKY, linewidth=6, alpha=0.6)
        axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=5)
    axes.axvline(100 * np.mean(next(iter(rows.values()))), **CHANCE)
    if live is not None:
        look = {"color": ORANGE, "markersize": 13, "markeredgecolor": INK}
        axes.plot(100 * live[1], list(rows).index(live[0]), "*", label="this run", **look)
        axes.legend(loc="lower left")
    axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=xlabel, title=title)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    return figure


@styled
def power_law(series, lines, *, ylabel):
    """Errors against size on logarithmic axes, a panel a series: every seed's points, and its line.

    series: {name of the x axis: {x: errors in 0..1, one a seed}}. lines: {name: (slope, intercept) of log y in log x for
    each seed, drawn over the whole range}.
    """
    figure = Figure(width=680, height=330, label=ylabel, layout="constrained")
    panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for axes, (name, points) in zip(panels, series.items(), strict=True):
        x = array(list(points))
        ends = np.array([x.min(), x.max()])
        for k, (slope, intercept) in enumerate(lines[name]):
            values = [each[k] for each in points.values()]
            axes.plot(x, values, "o", color=BLUE, markersize=5)
            axes.plot(ends, np.exp(intercept) * ends**slope, "--", color=GREY, linewidth=1.1)
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.set_xticks(x, [f"{each:,.0f}" for each in x])
        axes.minorticks_off()
        ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
        axes.set_yticks(ticks, ticks)
    panels[0].set_ylabel(ylabel)
    return figure
