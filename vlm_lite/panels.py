"""The figures that are tables of images and words, one question with its answers, and those of a single study.

`plots` offers them with all others; they stand apart so that each module is read in one sitting.
"""

from vlm_lite.figures import (
    BLUE,
    GREEN,
    GREY,
    GUESS,
    INK,
    LINE,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    Figure,
    styled,
    wrap,
)


def _table(images, header, rows, widths, label, side=84):
    """Images at the left and one row of texts each: `rows[i]` holds (text, colour, weight) per column."""
    gap = 12
    lefts = [gap + side + gap + sum(widths[:i]) + gap * i for i in range(len(widths))]
    head = 40 + LINE * max(text.count("\n") for text in header)
    height = head + len(rows) * (side + gap) + 4
    figure = Figure(width=lefts[-1] + widths[-1] + gap, height=height, label=label)
    for left, text in zip(lefts, header, strict=True):
        figure.text_at(left, 14, text, fontweight="bold")
    for i, (image, cells) in enumerate(zip(images, rows, strict=True)):
        top = head + i * (side + gap)
        figure.picture_at(image, gap, top, side)
        for left, width, (text, colour, weight) in zip(lefts, widths, cells, strict=True):
            lines = wrap(text, width, 9.5, side // LINE, weight)
            figure.text_at(
                left, top + side / 2, lines, va="center", color=colour, fontweight=weight
            )
    return figure


@styled
def answer_table(images, columns, *, widths=None, label="answers"):
    """Images with one column of texts for each of `columns` {name: N texts}, the last in bold."""
    last = len(columns) - 1
    rows = [
        [(text, INK, "bold" if k == last else "normal") for k, text in enumerate(row)]
        for row in zip(*columns.values(), strict=True)
    ]
    return _table(images, list(columns), rows, widths or (180,) * len(columns), label)


@styled
def scoreboard(images, questions, answers, given, *, correct=None):
    """Can it see yet? One row a question: image, question, right answer, and each model's answer with ✓ or ✗.

    answers: N right answers. given: {model name: N answers}. correct: {model name: N booleans}; None compares the words
    without regard to case.
    """
    if correct is None:
        right = [answer.strip().lower() for answer in answers]
        correct = {
            name: [text.strip().lower() == r for text, r in zip(said, right, strict=True)]
            for name, said in given.items()
        }
    looks = {True: ("✓ ", BLUE, "bold"), False: ("✗ ", VERMILLION, "normal")}
    rows = []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        rows.append([(question, INK, "normal"), (answer, INK, "bold")])
        for name, said in given.items():
            mark, *look = looks[bool(correct[name][i])]
            rows[-1].append((mark + said[i], *look))
    header = ["question", "right answer"] + [
        f"{wrap(name, 124, 9.5, 1, 'bold')}\n{sum(correct[name])} of {len(questions)}"
        for name in given
    ]
    return _table(images, header, rows, (200, 96) + (124,) * len(given), "Can it see yet?", side=72)


CONTROLS = {
    "vlm": (BLUE, ""),
    "oracle": (GREEN, "xxxx"),
    "patch-shuffled": (SKY, "----"),
    "shuffled": (ORANGE, "\\\\\\\\"),
    "blank": (PALE, "...."),
    "blind": ("white", "////"),
}  # others are white


@styled
def controls_bars(board, *, guess=None, title=""):
    """A score and its controls, a bar each, with whiskers; the blind one goes on as a dashed line.

    board: {name: Interval or anything with value, low and high, in 0..1}, from the top down. guess: (name, percent).
    """
    figure = Figure(width=680, height=112 + 32 * len(board), label=title, layout="constrained")
    axes = figure.subplots()
    for row, (name, score) in enumerate(board.items()):
        value, low, high = (100 * end for end in (score.value, score.low, score.high))
        colour, hatch = CONTROLS.get(name, ("white", ""))
        axes.barh(row, value, 0.66, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.8)
        axes.errorbar(
            value, row, xerr=[[value - low], [high - value]], color=INK, capsize=4, linewidth=1.3
        )
        axes.text(
            high + 1.5,
            row,
            f"{value:.1f}",
            va="center",
            fontweight="bold" if name == "vlm" else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    if "blind" in board:
        axes.axvline(
            100 * board["blind"].value,
            color=INK,
            linestyle="--",
            linewidth=1.1,
            zorder=0.9,
            label="blind",
        )
    if guess is not None:
        axes.axvline(guess[1], label=f"my guess for {guess[0]}: {guess[1]:g}", **GUESS)
    axes.set(
        yticks=range(len(board)),
        yticklabels=["the VLM" if name == "vlm" else name for name in board],
        xlim=(0, 106),
        xlabel="VQA accuracy (%), with 95% intervals",
        title=title,
    )
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


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
    best = max(answers, key=probabilities.get)
    axes = figure.axes_at(left + 84, 94, width - left - 84 - 56, 138)
    for row, answer in enumerate(answers):
        percent = 100 * probabilities[answer]
        axes.barh(row, percent, 0.68, color=BLUE if answer == best else SKY)
        look = dict(va="center", fontweight="bold" if answer == best else "normal")
        axes.text(percent + 1.2, row, f"{percent:.0f}%", **look)
    axes.set(
        yticks=range(len(answers)),
        yticklabels=[wrap(answer, 80, 10, 1) for answer in answers],
        xlim=(0, 100),
        xticks=range(0, 101, 25),
        ylim=(max(top, len(answers)) - 0.4, -0.6),
    )
    axes.set_xlabel("probability of the answer (%)")
    axes.tick_params(axis="y", labelsize=10)
    axes.grid(axis="y", visible=False)
    if blind is not None:
        axes.axvline(100 * blind, **GUESS, zorder=3)
        axes.annotate(
            f"without the image: “{wrap(answers[0], 120, 8.5, 1)}” at {blind:.0%}",
            (100 * blind, -0.6),
            (0, 3),
            textcoords="offset points",
            color=VERMILLION,
            fontsize=8.5,
            va="bottom",
            ha="left" if blind < 0.5 else "right",
            annotation_clip=False,
        )
    return figure


@styled
def losses(curves, title=""):
    """Training curves {name: losses} on a log axis, each with its last value in the legend."""
    figure = Figure(width=640, height=290, label=title or "losses", layout="constrained")
    axes = figure.subplots()
    looks = zip((BLUE, ORANGE, GREEN, VERMILLION), ("-", "--", "-.", ":"), strict=True)
    for (name, values), (colour, line) in zip(curves.items(), looks, strict=False):
        label = f"{name}: {values[-1]:.3f} at the end"
        axes.plot(range(1, len(values) + 1), values, line, color=colour, label=label)
    axes.set(yscale="log", xlabel="training step", ylabel="loss (nats)", title=title)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="upper right")
    return figure


@styled
def museum_wall(exhibits, columns=3):
    """Cards of a DataFrame's rows: name, measure, and broken and fixed as bars; "lower is better" marked with an arrow."""
    width, tall = 292, 118
    rows = -(-len(exhibits) // columns)
    figure = Figure(width=16 + width * columns, height=38 + tall * rows, label="silent bugs")
    figure.text_at(16, 10, "hatched: broken   solid: fixed   ↓ lower is better", color=GREY)
    for k, (name, each) in enumerate(exhibits.iterrows()):
        left, top = 16 + width * (k % columns), 38 + tall * (k // columns)
        figure.text_at(left, top, f"{k + 1}. {name}", fontweight="bold", fontsize=10.5)
        measure = each["measure"] + " ↓" * each["lower is better"]
        figure.text_at(left, top + 20, measure, fontsize=9.5, color=GREY)
        axes = figure.axes_at(left, top + 42, 196, 58)
        bars = ((each["broken"], VERMILLION, "///"), (each["fixed"], BLUE, ""))
        longest = max(value for value, _, _ in bars) or 1
        for row, (value, colour, hatch) in enumerate(bars):
            part = value / longest
            axes.barh(row, part, 0.74, color=colour, hatch=hatch, edgecolor="white")
            look = dict(va="center", fontweight="bold", color=colour)
            axes.text(part + 0.03, row, f"{value:.2g}", **look)
        axes.set(xlim=(0, 1), ylim=(1.5, -0.5), xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[["bottom"]].set_visible(False)
    return figure
