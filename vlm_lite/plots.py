"""The figures of the course: one function each, which takes data and returns a Figure.

Scores are percentages (0 to 100), recalls and probabilities fractions (0 to 1). A learner's `guess`, made before the
result is seen, is a dashed line. Show a figure by making it a cell's last expression, or with `display(...)`.
"""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from vlm_lite.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LINE,
    NIGHT,
    NIGHT_FRAME,
    NIGHT_INK,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    YELLOW,
    Figure,
    array,
    style,  # noqa: F401
    styled,
    wrap,
)
from vlm_lite.models.positions import position_cosines

GUESS = {"color": VERMILLION, "linestyle": (0, (5, 3)), "linewidth": 1.6}  # also the blind line
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
CHANCE = {"color": GREY, "linestyle": ":", "linewidth": 1.6}
CONTROLS = {  # condition -> (label, colour, hatch); others are white
    "blind": ("blind (question only)", "white", "////"),
    "blank": ("blank image", PALE, "...."),
    "shuffled": ("shuffled images", ORANGE, "\\\\\\\\"),
    "patch-shuffled": ("patch-shuffled", SKY, "----"),
    "vlm": ("the VLM", BLUE, ""),
    "oracle": ("oracle (scene in words)", GREEN, "xxxx"),
}


def _panels(width, height, label, columns=1, **shared):
    """(figure, its panels side by side), laid out so that nothing is cut off."""
    figure = Figure(width=width, height=height, label=label, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **shared)[0]


def _rows(names, xlabel, label="", height=34):
    """(figure, axes) for rows of bars, so many pixels each, with their names from the top down."""
    figure, (axes,) = _panels(680, 120 + height * len(names), label or xlabel)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    return figure, axes


@styled
def show_images(images, titles=None, columns=5, size=144):
    """Images in a dark frame, `size` pixels each, with their titles beneath.

    images: uint8 (N, 3, H, W), or a list of PIL images. titles: N strings, or None.
    """
    gap, columns = 14, min(columns, len(images))
    titles = [wrap(title, size - 2, 9) for title in titles or [""] * len(images)]
    lines = max(title.count("\n") + 1 if title else 0 for title in titles)
    wide, high = size + gap, size + gap + (lines * LINE + 8) * bool(lines)
    rows = -(-len(images) // columns)
    frame = dict(width=columns * wide + gap, height=rows * high + gap, facecolor=NIGHT)
    figure = Figure(label=f"{len(images)} images", **frame)
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        left, top = gap + i % columns * wide, gap + i // columns * high
        figure.picture_at(image, left, top, size, frame=NIGHT_FRAME)
        look = dict(ha="center", color=NIGHT_INK, fontsize=9)
        figure.text_at(left + size / 2, top + size + 7, title, **look)
    return figure


@styled
def loss_curve(history, *, band=None, chance=None, ylabel="loss", title=""):
    """A live loss over the recorded band of several seeds, with how much of it lies inside, and how much usually does.

    history: a checkpoint.History. band: a study's dict of lists `steps`, `low`, `high`, `mean`, and `seeds`, their number
    n: of a further run's points, (n - 1) / (n + 1) lie inside on average. A study keeps four decimals, so a point up to
    half a unit of the fourth beyond an edge is inside. chance: the loss of a model that knows nothing.
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
            rounded = 5e-5
            inside = (floor - rounded <= curve[held]) & (curve[held] <= roof + rounded)
            share = np.mean(inside)
            # Of n + 1 like runs each is as likely as another to be the highest, or the lowest.
            usual = (band["seeds"] - 1) / (band["seeds"] + 1)
            title = f"{title}\n" * bool(title)
            title += f"inside the range of {band['seeds']} seeds at {share:.0%} of points "
            title += f"(a further seed: about {usual:.0%})"
    axes.plot(steps, curve, color=BLUE, label=f"this run: {curve[-1]:.2f} at the end")
    axes.plot(steps[-1:], curve[-1:], "o", color=BLUE, markersize=5, clip_on=False)
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
    low, high = (edge([*maps.values()]) for edge in (np.min, np.max))
    for column, (name, values) in enumerate(maps.items()):
        axes = figure.axes_at(left + column * (side + 24), 34, side, side)
        shown = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        axes.set(title=name, xlabel="caption", xticks=range(count), xticklabels=numbers, yticks=[])
        axes.grid(False)
        if column == 0:
            axes.set_ylabel("image", labelpad=35)
        for (row, col), value in np.ndenumerate(values):
            colour = INK if value > (low + high) / 2 else "white"
            look = dict(ha="center", va="center", fontsize=7.5, color=colour)
            axes.text(col, row, f"{value:.2f}", weight="bold" if row == col else "normal", **look)
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
    shown = pd.DataFrame(recall).mul(100)
    for way, name, colour, hatch, place in (
        ("image to text", "image to caption", BLUE, "", -0.195),
        ("text to image", "caption to image", SKY, "////", 0.195),
    ):
        look = dict(color=colour, hatch=hatch, edgecolor="white", label=name)
        bars = axes.bar(np.arange(len(shown)) + place, shown[way], 0.37, **look)
        axes.bar_label(bars, fmt="%.1f", bbox=WHITE)
    ceiling = {"color": INK, "linestyle": "-", "linewidth": 1.3}
    for levels, name, look in (
        (recall.get("chance"), "chance", CHANCE),
        (recall.get("ceiling"), "ceiling of the captions", ceiling),
        (guess, "my guess", GUESS),
    ):
        for k, level in (levels or {}).items():
            x = shown.index.get_loc(k) + np.array([-0.47, 0.47])
            axes.plot(x, [100 * level] * 2, label=name, **look)
            name = None
    axes.set_xticks(range(len(shown)), shown.index)
    axes.set(ylim=(0, 108), yticks=range(0, 101, 20), title="Retrieval")
    axes.set_ylabel("queries with a right hit\namong the first K (%)")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def percent_table(rows):
    """{row: {column: a fraction}} as a table of percentages with one decimal."""
    return pd.DataFrame(rows).T.map("{:.1%}".format)


@styled
def controls_bars(board, *, bridge=None, guess=None, title=""):
    """A score and its controls, a bar each, with whiskers; blind and oracle go on as lines.

    board: {name: Interval, in 0..1}, from the top down. bridge: a BridgeScore, to say it and the multimodal gain in the
    title. guess: (name, percent).
    """
    if bridge is not None:
        gain = 100 * (board["vlm"].value - board["blind"].value)
        board = {name: board[name] for name in CONTROLS if name in board}
        said = bridge.interval
        said = said if bridge.value is None else "{:.2f} ({:.2f} to {:.2f})".format(*said)
        title += f"\nmultimodal gain {gain:+.1f} points,   bridge score {said}"
    looks = [CONTROLS.get(name, (name, "white", "")) for name in board]
    names, colours, hatches = zip(*looks, strict=True)
    figure, axes = _rows(names, "VQA accuracy (%)", title or "scores")
    values, lows, highs = 100 * array([(i.value, i.low, i.high) for i in board.values()]).T
    look = dict(edgecolor=INK, linewidth=0.8, capsize=4, xerr=(values - lows, highs - values))
    bars = axes.barh(range(len(board)), values, 0.66, color=colours, hatch=hatches, **look)
    axes.bar_label(bars, fmt="%.1f", padding=4, fontweight="bold", bbox=WHITE)
    for name, colour, line in (("blind", INK, "--"), ("oracle", GREEN, "-.")):
        if name in board:
            look = dict(color=colour, linestyle=line, linewidth=1.2, zorder=0.9)
            axes.axvline(100 * board[name].value, label=name, **look)
    if guess is not None:
        axes.axvline(guess[1], label=f"my guess for {guess[0]}: {guess[1]:g}", **GUESS)
    axes.set_xlim(0, 106)
    figure.suptitle(title.strip(), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def by_type_bars(table, *, title):
    """Per question type: the VLM's score as a bar, the blind model's as a bar mark, the oracle's as a diamond.

    table: {"colour": {"vlm": 80.1, "blind": 20.3, "oracle": 97.0}, ...} in percent.
    """
    figure, axes = _rows(list(table), "VQA accuracy (%)", title)
    rows = range(len(table))
    vlm, blind, oracle = ([each[n] for each in table.values()] for n in ("vlm", "blind", "oracle"))
    bars = axes.barh(rows, vlm, 0.6, color=BLUE, alpha=0.85, label="the VLM")
    look = dict(label_type="edge", padding=-20, color="white", fontweight="bold", fontsize=8.5)
    axes.bar_label(bars, fmt=lambda value: f"{value:.0f}" if value >= 8 else "", **look)
    for width, colour, name in ((4.5, "white", None), (2.2, INK, "blind")):
        look = dict(marker="|", markersize=24, markeredgewidth=width, linestyle="none")
        axes.plot(blind, rows, color=colour, label=name, **look)
    look = dict(color=GREEN, markeredgecolor="white", markersize=8, clip_on=False)
    axes.plot(oracle, rows, "D", label="oracle", **look)
    axes.set(title=title, xlim=(0, 106))
    figure.legend(loc="outside lower center", ncols=3, markerscale=0.45)
    return figure


@styled
def attention_over_image(image, maps, *, titles=None, size=128):
    """The image, then one copy per map with the attended patches outlined: the wider the frame, the larger the weight.

    image: (3, H, W) uint8 or PIL. maps: (Q, h, w) weights on the patch grid, such as (Q, 4, 4); each map's frames are
    scaled to its own maximum, and weights below a tenth of it have none.
    """
    maps, notes = array(maps), ["the image"]
    for k, weights in enumerate(maps):
        note = titles[k] if titles else f"query {k + 1}"
        notes.append(
            f"{note} (max\N{NO-BREAK SPACE}{weights.max():.2f})" if weights.max() < 0.995 else note
        )
    figure = show_images([image] * len(notes), notes, size=size)
    high, wide = (size / count for count in maps.shape[1:])
    for axes, weights in zip(figure.axes, [np.zeros_like(maps[0]), *maps], strict=True):
        axes.set(xticks=np.arange(wide, size - 1, wide) - 0.5, xticklabels=[])
        axes.set(yticks=np.arange(high, size - 1, high) - 0.5, yticklabels=[])
        axes.grid(True, color=NIGHT_FRAME, linewidth=0.5)
        axes.set_axisbelow(False)
        share = weights / max(weights.max(), 1e-12)
        for row, col in zip(*np.nonzero(share >= 0.1), strict=True):
            look = dict(fill=False, edgecolor=YELLOW, linewidth=3.2 * share[row, col], zorder=3)
            corner = col * wide + 0.5, row * high + 0.5
            axes.add_patch(Rectangle(corner, wide - 2, high - 2, **look))
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
    figure, axes = _rows(list(rows), xlabel, height=26)
    for place, values in enumerate(rows.values()):
        values = 100 * array(values)
        axes.hlines(place, values.min(), values.max(), color=SKY, linewidth=6, alpha=0.6)
        axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=5)
    first, values = next(iter(rows.items()))
    axes.axvline(100 * np.mean(values), label=f"mean of: {first}", **CHANCE)
    if live is not None:
        look = {"color": ORANGE, "markersize": 13, "markeredgecolor": INK}
        axes.plot(100 * live[1], list(rows).index(live[0]), "*", label="this run", **look)
    figure.legend(loc="outside lower center", ncols=2)
    axes.set_xlim(left=0)
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


@styled
def answer_table(images, columns, *, widths=None, label="answers", side=84):
    """Images at the left and one column of texts for each of `columns` {name: N texts}.

    A text that begins with ✓ is blue and bold, one with ✗ red. side: of the images, in pixels.
    """
    gap, widths = 12, widths or (180,) * len(columns)
    lefts = [gap + side + gap + sum(widths[:i]) + gap * i for i in range(len(widths))]
    head = 40 + LINE * max(name.count("\n") for name in columns)
    height = head + len(images) * (side + gap) + 4
    figure = Figure(width=lefts[-1] + widths[-1] + gap, height=height, label=label)
    for i, image in enumerate(images):
        figure.picture_at(image, gap, head + i * (side + gap), side)
    for left, width, name in zip(lefts, widths, columns, strict=True):
        figure.text_at(left, 14, name, fontweight="bold")
        for i, text in enumerate(columns[name]):
            weight = "bold" if text.startswith("✓") else "normal"
            colour = {"✓": BLUE, "✗": VERMILLION}.get(text[:1], INK)
            look = dict(va="center", color=colour, fontweight=weight)
            lines = wrap(text, width, 9.5, side // LINE, weight)
            figure.text_at(left, head + i * (side + gap) + side / 2, lines, **look)
    return figure


def scoreboard(images, questions, answers, given):
    """Can it see yet? One row a question: image, question, right answer, and each model's answer with ✓ or ✗.

    answers: N right answers. given: {model name: N answers}, compared without regard to case.
    """
    columns = {"question": questions, "right answer": answers}
    for name, said in given.items():
        pairs = zip(said, answers, strict=True)
        marked = [f"{'✓' if a.strip().lower() == b.strip().lower() else '✗'} {a}" for a, b in pairs]
        right = sum(text.startswith("✓") for text in marked)
        columns[f"{wrap(name, 124, 9.5, 1, 'bold')}\n{right} of {len(questions)}"] = marked
    widths = (200, 96) + (124,) * len(given)
    return answer_table(images, columns, widths=widths, label="Can it see yet?", side=72)


@styled
def ask_panel(image, question, probabilities, *, blind=None, answers=None, top=5, title=""):
    """One question about one image: the image, the question, and the probabilities of the likeliest answers.

    image: None to draw it hidden. probabilities: {answer: fraction}. answers: which to show, in order;
    None for the `top` likeliest. blind: the probability of the first answer shown when the model has no image, a
    dashed line. The size of the figure never varies (frames of an animation).
    """
    side, width, height = 236, 720, 286
    figure = Figure(width=width, height=height, label=question)
    if image is None:
        axes = figure.axes_at(24, 26, side, side, facecolor=PALE)
        axes.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=11)
        axes.set(xticks=[], yticks=[])
    else:
        figure.picture_at(image, 24, 26, side)
    left = 24 + side + 28
    lines = wrap(question, width - left - 24, 13, 2, "bold")
    figure.text_at(left, 24, lines, fontsize=13, fontweight="bold")
    figure.text_at(left, 6, title, fontsize=8.5, color=GREY)
    answers = list(answers or sorted(probabilities, key=probabilities.get, reverse=True)[:top])
    values = [100 * probabilities[answer] for answer in answers]
    axes = figure.axes_at(left + 84, 94, width - left - 84 - 56, 138)
    colours = [BLUE if value == max(values) else SKY for value in values]
    bars = axes.barh(range(len(answers)), values, 0.68, color=colours)
    axes.bar_label(bars, fmt="%.0f%%", padding=4)
    axes.set_yticks(range(len(answers)), [wrap(answer, 80, 10, 1) for answer in answers])
    axes.set(xlim=(0, 100), xticks=range(0, 101, 25))
    axes.set_ylim(max(top, len(answers)) - 0.4, -0.6)
    axes.set_xlabel("probability of the answer (%)")
    axes.tick_params(axis="y", labelsize=10)
    axes.grid(axis="y", visible=False)
    if blind is not None:
        axes.axvline(100 * blind, **GUESS, zorder=3)
        note = f"without the image: “{wrap(answers[0], 120, 8.5, 1)}” at {blind:.0%}"
        axes.set_title(note, color=VERMILLION, fontsize=8.5, fontweight="normal", pad=3)
    return figure


@styled
def losses(curves, title="", *, ylabel="loss (nats)", every=1):
    """Training curves {name: losses} on a log axis, a point every so many steps, the last value in the legend."""
    figure, (axes,) = _panels(640, 290, title or "losses")
    looks = zip((BLUE, ORANGE, GREEN, VERMILLION), ("-", "--", "-.", ":"), strict=True)
    for (name, values), (colour, line) in zip(curves.items(), looks, strict=False):
        label = f"{name}: {values[-1]:.3f} at the end"
        steps = [every * (k + 1) for k in range(len(values))]
        axes.plot(steps, values, line, color=colour, label=label)
    axes.set(yscale="log", xlabel="training step", ylabel=ylabel, title=title)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend()
    return figure


@styled
def museum_wall(exhibits, columns=3):
    """A panel for each row of a DataFrame: name, broken and fixed as bars, and the measure, "lower is better" an arrow."""
    rows = -(-len(exhibits) // columns)
    figure = Figure(width=880, height=30 + 112 * rows, label="silent bugs", layout="constrained")
    figure.suptitle("hatched: broken   solid: fixed   ↓ lower is better", color=GREY, fontsize=9.5)
    for number, (name, each) in enumerate(exhibits.iterrows(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        values, look = array(each[["broken", "fixed"]]), {"edgecolor": "white"}
        look |= {"color": [VERMILLION, BLUE], "hatch": ["///", ""]}
        bars = axes.barh(range(2), values, 0.74, **look)
        axes.bar_label(bars, fmt="%.2g", padding=4, fontweight="bold")
        axes.set(title=f"{number}. {name}", xlabel=each["measure"] + " ↓" * each["lower is better"])
        axes.set(xlim=(0, 1.25 * max(*values, 1e-9)), ylim=(1.5, -0.5), xticks=[], yticks=[])
        axes.spines["bottom"].set_visible(False)
    return figure


@styled
def share_bars(frame, *, title=""):
    """Each column of a DataFrame as one bar of 100%, divided among the rows."""
    figure, axes = _rows(list(frame), "share (%)", title, height=42)
    shares = 100 * frame / frame.sum()
    looks = zip(
        (BLUE, ORANGE, GREEN, VERMILLION, "white"), ("", "//", "xx", "--", ".."), strict=True
    )
    left = 0
    for (name, row), (colour, hatch) in zip(shares.iterrows(), looks, strict=False):
        look = {"color": colour, "hatch": hatch, "edgecolor": INK, "linewidth": 0.8}
        axes.barh(range(len(row)), row, 0.6, left, label=name, **look)
        left = left + row
    axes.set(xlim=(0, 100), title=title)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
