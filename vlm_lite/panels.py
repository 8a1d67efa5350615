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


@styled
def answer_table(images, columns, *, widths=None, label="answers", side=84):
    """Images at the left and one column of texts for each of `columns` {name: N texts}, the last in bold.

    A text that begins with ✓ is blue and bold, one with ✗ red. side: of the images, in pixels.
    """
    gap, widths = 12, widths or (180,) * len(columns)
    lefts = [gap + side + gap + sum(widths[:i]) + gap * i for i in range(len(widths))]
    head = 40 + LINE * max(name.count("\n") for name in columns)
    height = head + len(images) * (side + gap) + 4
    figure = Figure(width=lefts[-1] + widths[-1] + gap, height=height, label=label)
    for i, image in enumerate(images):
        figure.picture_at(image, gap, head + i * (side + gap), side)
    for k, (left, width, name) in enumerate(zip(lefts, widths, columns, strict=True)):
        figure.text_at(left, 14, name, fontweight="bold")
        for i, text in enumerate(columns[name]):
            is_bold = text.startswith("✓") or k == len(widths) - 1 and not text.startswith("✗")
            weight = "bold" if is_bold else "normal"
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
        note = f"without the image: “{wrap(answers[0], 120, 8.5, 1)}” at {blind:.0%}"
        axes.set_title(note, color=VERMILLION, fontsize=8.5, fontweight="normal", pad=3)
    return figure


@styled
def losses(curves, title="", *, ylabel="loss (nats)", every=1):
    """Training curves {name: losses} on a log axis, a point every so many steps, the last value in the legend."""
    figure = Figure(width=640, height=290, label=title or "losses", layout="constrained")
    axes = figure.subplots()
    looks = zip((BLUE, ORANGE, GREEN, VERMILLION), ("-", "--", "-.", ":"), strict=True)
    for (name, values), (colour, line) in zip(curves.items(), looks, strict=False):
        label = f"{name}: {values[-1]:.3f} at the end"
        steps = [every * (k + 1) for k in range(len(values))]
        axes.plot(steps, values, line, color=colour, label=label)
    axes.set(yscale="log", xlabel="training step", ylabel=ylabel, title=title)
    for each in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        each(lambda value, _: f"{value:.1g}")
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


@styled
def share_bars(frame, *, title=""):
    """Each column of a DataFrame as one bar of 100%, divided among the rows."""
    height = 140 + 42 * len(frame.columns)
    figure = Figure(width=680, height=height, label=title, layout="constrained")
    axes, left = figure.subplots(), 0
    looks = zip(
        (BLUE, ORANGE, GREEN, VERMILLION, "white"), ("", "//", "xx", "--", ".."), strict=True
    )
    for (name, row), (colour, hatch) in zip(
        (100 * frame / frame.sum()).iterrows(), looks, strict=False
    ):
        look = {"color": colour, "hatch": hatch, "edgecolor": INK, "linewidth": 0.8}
        axes.barh(frame.columns, row, 0.6, left, label=name, **look)
        left = left + row
    axes.set(xlabel="share (%)", xlim=(0, 100), title=title)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
