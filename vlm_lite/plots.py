"""The figures of the course: one function each, which takes data and returns a Figure.

Scores are percentages (0 to 100), recalls and probabilities fractions (0 to 1). A learner's `guess`, made before the
result is seen, is a dashed line. Show a figure by making it a cell's last expression, or with `display(...)`.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

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
    style,  # noqa: F401
    styled,
    wrap,
)
from vlm_lite.models.positions import position_cosines
from vlm_lite.panels import (  # noqa: F401  the rest of the figures, under one name
    answer_table,
    ask_panel,
    controls_bars,
    losses,
    museum_wall,
    scoreboard,
)

WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
CHANCE = {"color": GREY, "linestyle": ":", "linewidth": 1.6}
ROWS = {  # condition -> (label, colour, hatch)
    "blind": ("blind (question only)", "white", "////"),
    "blank": ("blank image", PALE, "...."),
    "shuffled": ("shuffled images", ORANGE, "\\\\\\\\"),
    "vlm": ("the VLM", BLUE, ""),
    "oracle": ("oracle (scene in words)", GREEN, "xxxx"),
}


def _panels(width, height, label, columns=1, **shared):
    """(figure, its panels side by side), laid out so that nothing is cut off."""
    figure = Figure(width=width, height=height, label=label, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **shared)[0]


@styled
def show_images(images, titles=None, columns=5, size=144):
    """Pictures in a dark frame, `size` pixels each, with their titles beneath.

    images: uint8 (N, 3, H, W), or a list of PIL images. titles: N strings, or None.
    """
    gap, columns = 14, min(columns, len(images))
    titles = [wrap(title, size - 2, 9) for title in titles or [""] * len(images)]
    rows = [range(k, min(k + columns, len(images))) for k in range(0, len(images), columns)]
    depths = [
        max((titles[i].count("\n") + 1) * LINE + 8 if titles[i] else 0 for i in row) for row in rows
    ]
    figure = Figure(
        width=columns * (size + gap) + gap,
        height=len(rows) * (size + gap) + sum(depths) + gap,
        label=f"{len(images)} images",
        facecolor=NIGHT,
    )
    look, top = dict(ha="center", color=NIGHT_INK, fontsize=9), gap
    for row, depth in zip(rows, depths, strict=True):
        for column, i in enumerate(row):
            left = gap + column * (size + gap)
            figure.picture_at(images[i], left, top, size, frame=NIGHT_FRAME)
            figure.text_at(left + size / 2, top + size + 7, titles[i], **look)
        top += size + gap + depth
    return figure


@styled
def loss_curve(history, *, band=None, chance=None, ylabel="loss", title=""):
    """A live loss over the recorded band of several seeds, with how much of it lies inside, and how much usually does.

    history: a checkpoint.History. band: a study's dict of lists `steps`, `low`, `high`, `mean`, and `seeds`, their number
    n: of a further run's points, (n - 1) / (n + 1) lie inside on average. chance: the loss of a model that knows nothing.
    """
    steps, curve = array(history.steps), array(history.losses)
    figure, (axes,) = _panels(680, 350, f"{ylabel} against training step")
    if band is not None:
        recorded, low, high, mean = (array(band[key]) for key in ("steps", "low", "high", "mean"))
        name = f"recorded, {band['seeds']} seeds"
        look = dict(color=SKY, alpha=0.35, linewidth=0)
        axes.fill_between(recorded, low, high, label=f"{name}: range", **look)
        look = dict(color=GREY, linestyle="-.", linewidth=1.2)
        axes.plot(recorded, mean, label=f"{name}: mean", **look)
        held = (steps >= recorded[0]) & (steps <= recorded[-1])
        if held.any():
            floor, roof = (np.interp(steps[held], recorded, edge) for edge in (low, high))
            share = np.mean((floor <= curve[held]) & (curve[held] <= roof))
            # Of n + 1 like runs each is as likely as another to be the highest, or the lowest.
            usual = (band["seeds"] - 1) / (band["seeds"] + 1)
            title = f"{title}\n" * bool(title)
            title += f"inside the range of {band['seeds']} seeds at {share:.0%} of points "
            title += f"(a further seed: about {usual:.0%})"
    axes.plot(steps, curve, color=BLUE, label="this run")
    axes.plot(steps[-1:], curve[-1:], "o", color=BLUE, markersize=5, clip_on=False)
    look = dict(va="center", color=BLUE, fontweight="bold", annotation_clip=False)
    last = steps[-1], curve[-1]
    axes.annotate(f"{last[1]:.2f}", last, (6, 0), textcoords="offset points", **look)
    if chance is not None:
        axes.axhline(chance, label=f"knows nothing: {chance:.2f}", **CHANCE)
    axes.set(xlabel="training step", ylabel=ylabel, title=title)
    axes.set_ylim(bottom=min(0, curve.min()))
    axes.margins(x=0.01)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def similarity_matrix(before, after, captions, images):
    """Cosines before and after training, (N, N) each, on one colour scale: row i is image i, column j is caption j.

    images: N, drawn at the left of the rows. captions: N strings, listed beneath with their numbers.
    """
    maps = {"before training": array(before), "after training": array(after)}
    count, left = len(images), 92
    side = max(240, min(40 * count, 330))
    cell, numbers = side / count, range(1, count + 1)
    figure = Figure(
        width=left + 2 * side + 120,
        height=94 + side + count * LINE,
        label="cosine similarity before training, after training",
    )
    low, high = (
        edge(each) for edge, each in ((np.min, [*maps.values()]), (np.max, [*maps.values()]))
    )
    for column, (name, values) in enumerate(maps.items()):
        axes = figure.axes_at(left + column * (side + 24), 34, side, side)
        shown = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        axes.set(title=name, xlabel="caption", xticks=range(count), xticklabels=numbers, yticks=[])
        axes.grid(False)
        if column == 0:
            axes.set_ylabel("image", labelpad=35)
        for (row, col), value in np.ndenumerate(values):
            look = dict(ha="center", va="center", fontsize=7.5)
            look["color"] = INK if value > (low + high) / 2 else "white"
            look["fontweight"] = "bold" if row == col else "normal"
            axes.text(col, row, f"{value:.2f}", **look)
    thumbnail = int(min(cell - 3, 34))
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        top = round(34 + (i + 0.5) * cell - thumbnail / 2)
        figure.picture_at(image, left - thumbnail - 5, top, thumbnail)
        line = wrap(f"{i + 1}  {caption}", 2 * side - 20, 9, max_lines=1)
        figure.text_at(left, 78 + side + i * LINE, line, fontsize=9)
    place = figure.axes_at(left + 2 * side + 40, 34, 14, side)
    figure.colorbar(shown, cax=place, label="cosine similarity").outline.set_visible(False)
    return figure


@styled
def recall_bars(recall, *, guess=None):
    """Recall@K both ways as bars, over what guessing gives and under what the captions allow.

    recall: {row: {"R@1": 0.7, "R@5": 0.9}} with rows "image to text", "text to image", and "chance" and "ceiling" as
    lines; other rows are not drawn. guess: {"R@5": 0.8}.
    """
    figure, (axes,) = _panels(640, 330, "Retrieval")
    ks = list(recall["image to text"])
    for way, name, colour, hatch, place in (
        ("image to text", "image to caption", BLUE, "", -0.195),
        ("text to image", "caption to image", SKY, "////", 0.195),
    ):
        places, values = [i + place for i in range(len(ks))], [100 * recall[way][k] for k in ks]
        look = dict(color=colour, hatch=hatch, edgecolor="white", label=name)
        axes.bar_label(axes.bar(places, values, 0.37, **look), fmt="%.1f", bbox=WHITE)
    ceiling = {"color": INK, "linestyle": "-", "linewidth": 1.3}
    for levels, name, look in (
        (recall.get("chance"), "chance", CHANCE),
        (recall.get("ceiling"), "ceiling of the captions", ceiling),
        (guess, "my guess", GUESS),
    ):
        for k in levels or ():
            x = ks.index(k)
            axes.plot([x - 0.47, x + 0.47], [100 * levels[k]] * 2, label=name, **look)
            name = None
    axes.set(xticks=range(len(ks)), xticklabels=ks, ylim=(0, 108), yticks=range(0, 101, 20))
    axes.set(ylabel="queries with a right hit\namong the first K (%)", title="Retrieval")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def percent_table(rows):
    """{row: {column: a fraction}} as a table of percentages with one decimal."""
    return pd.DataFrame(rows).T.map("{:.1%}".format)


def _accuracy_rows(count, label, names):
    """(figure, axes) for rows of bars with their names, from the top down, over a scale of accuracy."""
    figure, (axes,) = _panels(660, 120 + 34 * count, label)
    axes.set(yticks=range(count), yticklabels=names, xlim=(0, 106), xticks=range(0, 101, 20))
    axes.set_xlabel("VQA accuracy (%)")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return figure, axes


@styled
def gain_bars(*, bridge, guess=None, title="", **scores):
    """Does it look? Scores in percent beside the blind and the oracle line, and the bridge score in the title.

    vlm, blind, oracle, and if you like shuffled and blank: (value, low, high), the interval drawn as a whisker. bridge:
    (value, low, high), or "undefined". guess: the VLM's score.
    """
    scores = {name: scores[name] for name in ROWS if name in scores}
    head = f"multimodal gain {scores['vlm'][0] - scores['blind'][0]:+.1f} points,   bridge score "
    head += bridge if bridge == "undefined" else "{:.2f} ({:.2f} to {:.2f})".format(*bridge)
    figure, axes = _accuracy_rows(len(scores), head, [ROWS[name][0] for name in scores])
    values, lows, highs = (array(each) for each in zip(*scores.values(), strict=True))
    look = {"color": [ROWS[n][1] for n in scores], "hatch": [ROWS[n][2] for n in scores]}
    look |= dict(edgecolor=INK, linewidth=0.8, capsize=4, xerr=(values - lows, highs - values))
    bars = axes.barh(range(len(scores)), values, 0.66, **look)
    axes.bar_label(bars, fmt="%.1f", padding=4, fontweight="bold", bbox=WHITE)
    for name, colour, line in (("blind", INK, "--"), ("oracle", GREEN, "-.")):
        look = dict(color=colour, linestyle=line, linewidth=1.2, zorder=0.9)
        axes.axvline(scores[name][0], label=name, **look)
    if guess is not None:
        axes.axvline(guess, label=f"my guess: {guess:g}", **GUESS)
    head = f"{title}\n" * bool(title) + head
    figure.suptitle(head, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def by_type_bars(table, *, title):
    """Per question type: the VLM's score as a bar, the blind model's as a bar mark, the oracle's as a diamond.

    table: {"colour": {"vlm": 80.1, "blind": 20.3, "oracle": 97.0}, ...} in percent.
    """
    figure, axes = _accuracy_rows(len(table), title, list(table))
    rows = range(len(table))
    vlm, blind, oracle = ([each[n] for each in table.values()] for n in ("vlm", "blind", "oracle"))
    bars = axes.barh(rows, vlm, 0.6, color=BLUE, alpha=0.85, label="the VLM")
    look = dict(label_type="center", color="white", fontweight="bold", fontsize=8.5)
    axes.bar_label(bars, fmt=lambda value: f"{value:.0f}" if value >= 8 else "", **look)
    for width, colour, name in ((4.5, "white", None), (2.2, INK, "blind")):
        look = dict(marker="|", markersize=24, markeredgewidth=width, linestyle="none")
        axes.plot(blind, rows, color=colour, label=name, **look)
    look = dict(color=GREEN, markeredgecolor="white", markersize=8, clip_on=False)
    axes.plot(oracle, rows, "D", label="oracle", **look)
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=3, markerscale=0.45)
    return figure


@styled
def attention_over_image(image, maps, *, titles=None, size=128):
    """The image, then one copy per map with the attended patches outlined: the wider the frame, the larger the weight.

    image: (3, H, W) uint8 or PIL. maps: (Q, h, w) weights on the patch grid, such as (Q, 4, 4); each map's frames are
    scaled to its own maximum, and weights below a tenth of it have none.
    """
    maps, base = array(maps), enlarge(image, size)
    notes = ["the image"]
    for title, weights in zip(
        titles or [f"query {k + 1}" for k in range(len(maps))], maps, strict=True
    ):
        notes.append(f"{title}  (max {weights.max():.2f})" if weights.max() < 0.995 else title)
    gap, columns, depth = 12, min(5, len(notes)), 24
    figure = Figure(
        width=columns * (size + gap) + gap,
        height=math.ceil(len(notes) / columns) * (size + gap + depth) + gap,
        label="attention over the image",
        facecolor=NIGHT,
    )
    (rows, cols), inset = maps.shape[1:], 0.01
    for i, (weights, note) in enumerate(zip([np.zeros((rows, cols)), *maps], notes, strict=True)):
        left, top = gap + i % columns * (size + gap), gap + i // columns * (size + gap + depth)
        axes = figure.axes_at(left, top, size, size)
        axes.imshow(base, interpolation="nearest", aspect="auto", extent=(0, 1, 1, 0))
        axes.set(xticks=np.arange(1, cols) / cols, yticks=np.arange(1, rows) / rows)
        axes.tick_params(labelbottom=False, labelleft=False)
        axes.grid(color=NIGHT_FRAME, linewidth=0.5)
        axes.set_axisbelow(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=NIGHT_FRAME)
        share = weights / max(weights.max(), 1e-12)
        for row, col in zip(*np.nonzero(share >= 0.1), strict=True):
            corner, sides = (col / cols + inset, row / rows + inset), (1 / cols, 1 / rows)
            look = dict(fill=False, edgecolor=YELLOW, linewidth=3.2 * share[row, col], zorder=3)
            axes.add_patch(Rectangle(corner, *(side - 2 * inset for side in sides), **look))
        look = dict(ha="center", color=NIGHT_INK, fontsize=8.5)
        text = wrap(note, size + 8, 8.5, 1)
        figure.text_at(left + size / 2, top + size + 6, text, **look)
    return figure


@styled
def position_similarity(tables):
    """One panel for each table of position embeddings, and in it one small map for each position.

    A map shows the cosine of that position's vector with every position's, after the mean of the table (which says
    nothing of where) is subtracted. tables: {title: (1, 1 + grid², D)}, as a ViT's `pos_embed`, the class token's first.
    """
    label = "cosine similarity of position embeddings"
    figure, panels = _panels(70 + 250 * len(tables), 300, label, len(tables))
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
    figure, panels = _panels(680, 330, "the joint space", len(clouds))
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
def seed_ranges(rows, *, live=None, xlabel):
    """One line a row: the values of every seed, their range, and a dotted line through the first row's mean.

    rows: {name: fractions, one a seed}. live: (name of a row, this run's fraction).
    """
    figure, (axes,) = _panels(680, 90 + 26 * len(rows), xlabel)
    for place, values in enumerate(rows.values()):
        values = 100 * array(values)
        axes.hlines(place, values.min(), values.max(), color=SKY, linewidth=6, alpha=0.6)
        axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=5)
    axes.axvline(100 * np.mean(next(iter(rows.values()))), **CHANCE)
    if live is not None:
        look = {"color": ORANGE, "markersize": 13, "markeredgecolor": INK}
        axes.plot(100 * live[1], list(rows).index(live[0]), "*", label="this run", **look)
        axes.legend(loc="lower left")
    axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=xlabel)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    return figure


@styled
def power_law(series, lines, *, ylabel):
    """Errors against size on logarithmic axes, a panel a series: every seed's points, and its line.

    series: {name of the x axis: {x: errors in 0..1, one a seed}}. lines: {name: (slope, intercept) of log y in log x for
    each seed, drawn over the whole range}.
    """
    figure, panels = _panels(680, 330, ylabel, len(series), sharey=True)
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
