"""One page about one VLM: its scores with their controls, pictures with its answers, and its failures, HTML and JSON.

The page holds everything it shows (pictures as data, no script, nothing loaded), and every text from a model or a data
file is escaped.
"""

import base64
import io
import time
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

import vlm_lite
from vlm_lite import plots, recipes
from vlm_lite.data.language import CAPTION_PROMPT, short_prompt
from vlm_lite.data.shapes import load_shapes
from vlm_lite.evals.captions import caption_scores
from vlm_lite.evals.controls import (
    find_pairs,
    majority_answer,
    pair_scores,
    shuffle_patches,
    type_prior,
)
from vlm_lite.evals.probes import Interval, bootstrap_interval
from vlm_lite.evals.vqa import vqa_scores
from vlm_lite.figures import enlarge
from vlm_lite.files import UserError, atomic_write, write_json
from vlm_lite.models.vlm import VLM
from vlm_lite.profiles import resolve_model

ORDER = ("majority", "type prior", "blind", "blank", "shuffled", "patch-shuffled", "vlm", "oracle")
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f27}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;border-bottom:1px solid #e5e7eb;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}figure{display:inline-block;width:11rem;margin:.5rem;
vertical-align:top;font-size:.85rem}.wrong{color:#b3420a}.right{color:#0072b2}"""


def collect(run, *, questions=500, pictures=1000, examples=10):
    """(facts, {image_id: picture}) of the VLM in the folder or zoo entry `run`, on the held-out pictures of Shapes.

    facts is what the JSON holds: accuracies in [0, 1] with 95% intervals by condition (see ORDER) and by type of
    question, gain, bridge score, pairs, caption scores (tokenizer "whitespace"), and answers. UserError for a folder
    that holds no VLM, and for one whose eye does not take Shapes' pictures.
    """
    started, vlm = time.time(), VLM.from_pretrained(resolve_model(run))
    captions, rows = load_shapes("val", pictures, progress=False)
    images, references, ids = recipes.load_pictures(captions)
    side, patch = vlm.vision.image_size, vlm.vision.patch_size
    if side != images.shape[-1]:
        raise UserError(
            f"{run}: its eye takes pictures of {side} pixels, those of Shapes have {images.shape[-1]}. The "
            "report asks about the Shapes world: score photographs with vlm-lite eval."
        )
    rows = rows.select(range(min(questions, len(rows))))
    probe = recipes.probe(vlm, captions, rows, limit=len(rows))
    columns = {
        name: rows[name][:]
        for name in ("question", "image_id", "answer", "question_type", "answers")
    }
    train = load_shapes("train", pictures, progress=False)[1]
    place = {image_id: k for k, image_id in enumerate(ids)}
    disordered = recipes.picture_features(
        vlm.vision, shuffle_patches(images, patch), progress=False
    )
    said = {
        "majority": [majority_answer(train["answer"][:])] * len(rows),
        "type prior": type_prior(
            train["question_type"][:], train["answer"][:], columns["question_type"]
        ),
        **probe.answers,
        "patch-shuffled": vlm.generate(
            disordered[[place[i] for i in columns["image_id"]]].float(),
            list(map(short_prompt, columns["question"])),
            max_new_tokens=4,
        ),
    }
    scores = {
        name: vqa_scores(said[name], {"answers": columns["answers"]})
        for name in ORDER
        if name in said
    }
    pairs = find_pairs(columns["question"], columns["image_id"], columns["answer"])
    types = np.array(columns["question_type"])
    features = recipes.picture_features(vlm.vision, images, progress=False)[:100].float()
    written = vlm.generate(features, [CAPTION_PROMPT] * len(features), max_new_tokens=48)
    five = dict(enumerate(references[: len(written)]))

    def about(k):
        return {
            "image_id": columns["image_id"][k],
            "type": columns["question_type"][k],
            "question": columns["question"][k],
            "right answer": columns["answer"][k],
            **{name: said[name][k] for name in ("vlm", "blind", "shuffled")},
            "score": float(scores["vlm"][k]),
        }

    wrong = {
        kind: [k for k in np.flatnonzero(types == kind).tolist() if scores["vlm"][k] <= 0.5]
        for kind in sorted(set(types.tolist()))
    }
    facts = {
        "model": str(run),
        "made by": f"vlm-lite {vlm_lite.__version__}, vlm-lite report {run}",
        "pictures": len(images),
        "questions": len(rows),
        "normalize": probe.normalize,
        "accuracy": {name: vars(bootstrap_interval(values)) for name, values in scores.items()},
        "multimodal gain": vars(probe.gain),
        "bridge score": vars(probe.bridge),
        "pairs": {
            "count": len(pairs),
            "both right": {
                name: float(pair_scores(values, pairs).mean()) if pairs else None
                for name, values in scores.items()
            },
        },
        "by type": {
            kind: {
                "questions": int((types == kind).sum()),
                "wrong": len(wrong[kind]),
                **{name: float(values[types == kind].mean()) for name, values in scores.items()},
            }
            for kind in wrong
        },
        "captions": {
            name: caption_scores(five, dict(enumerate(texts)), ("BLEU", "CIDEr"), "whitespace")
            for name, texts in (
                ("own", written),
                ("of the next picture", written[1:] + written[:1]),
            )
        },
        "examples": [about(k) for k in range(min(examples, len(rows)))],
        "failures": {kind: [about(k) for k in found[:5]] for kind, found in wrong.items() if found},
        "written": [
            {"image_id": ids[k], "vlm": written[k], "reference": references[k][0]} for k in range(5)
        ],
        "seconds": round(time.time() - started),
    }
    return facts, {image_id: images[k] for image_id, k in place.items()}


def page(facts, pictures):
    """The HTML page of what `collect` gives; all texts are escaped."""

    def table(header, rows):
        lines = (
            "".join(f"<{cell}>{escape(str(value))}</{cell}>" for value in row)
            for cell, row in [("th", header), *(("td", row) for row in rows)]
        )
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

    def percent(value):
        return "" if value is None else f"{100 * value:.1f}"

    def figure(image_id, lines):
        text = "<br>".join(f'<span class="{kind}">{escape(line)}</span>' for kind, line in lines)
        return f'<figure><img src="{_data(pictures[image_id])}" alt="">{text}</figure>'

    def answered(row):
        return figure(
            row["image_id"],
            [
                ("", row["question"]),
                ("right" if row["score"] > 0.5 else "wrong", f"says {row['vlm']}"),
                (
                    "",
                    f"right: {row['right answer']}; blind: {row['blind']}; another picture: {row['shuffled']}",
                ),
            ],
        )

    board = {name: Interval(**score) for name, score in facts["accuracy"].items()}
    mime, data = plots.controls_bars(
        board, title=f"{facts['questions']} questions, held-out pictures"
    ).to_bytes()
    names, gain, bridge = list(board), facts["multimodal gain"], facts["bridge score"]
    bridge = (
        f"undefined ({bridge['reason']})"
        if bridge["value"] is None
        else f"{bridge['value']:.3f} [{bridge['low']:.3f}, {bridge['high']:.3f}]"
    )
    title = f"Does {facts['model']} look?"
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(facts['made by'])}: {facts['questions']} questions about "
        f"{facts['pictures']} pictures of the Shapes world that no part of the course was trained on.</p>",
        f'<h2>Scores and controls</h2><img src="{_uri(mime, data)}" alt="accuracy by condition">',
        f"<p>Multimodal gain (the VLM minus blind): <b>{100 * gain['value']:.1f} points</b> [{100 * gain['low']:.1f}, "
        f"{100 * gain['high']:.1f}]. Bridge score (the gain as a share of oracle minus blind): <b>{escape(bridge)}"
        f"</b>. VQA accuracy, normalize: {escape(facts['normalize'])}; 95% bootstrap intervals over questions.</p>",
        table(
            ["percent", "asked", *names],
            [
                [kind, of["questions"], *(percent(of[name]) for name in names)]
                for kind, of in facts["by type"].items()
            ],
        ),
        f"<h2>Complementary pairs</h2><p>{facts['pairs']['count']} pairs: one question, two pictures, two answers; "
        "both must be right. Who does not look has none.</p>",
        table(
            ["both right, percent", *names],
            [["", *(percent(facts["pairs"]["both right"][n]) for n in names)]],
        ),
        "<h2>Pictures with answers</h2>",
        *map(answered, facts["examples"]),
        "<h2>Captions</h2>",
        table(
            ["100 pictures", "BLEU-4", "CIDEr"],
            [
                [name, percent(of["Bleu_4"]), f"{of['CIDEr']:.2f}"]
                for name, of in facts["captions"].items()
            ],
        ),
        *(
            figure(
                row["image_id"], [("right", row["vlm"]), ("", f"the file's: {row['reference']}")]
            )
            for row in facts["written"]
        ),
        "<h2>Failures, by kind</h2>",
    ]
    for kind, rows in facts["failures"].items():
        of = facts["by type"][kind]
        parts += [
            f"<h3>{escape(kind)}: {of['wrong']} of {of['questions']} wrong</h3>",
            *map(answered, rows),
        ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def write_report(run, path, **options):
    """Write the page to `path` and its facts beside it as JSON, each whole or not at all; returns the facts."""
    path = Path(path)
    if path.suffix != ".html":
        raise UserError(
            f"{path}: expected a name that ends in .html; the JSON is written beside it."
        )
    facts, pictures = collect(run, **options)
    with atomic_write(path, "w") as file:
        file.write(page(facts, pictures))
    write_json(path.with_suffix(".json"), facts)
    return facts


def _data(picture):
    buffer = io.BytesIO()
    Image.fromarray(enlarge(picture, 128)).save(buffer, "png")
    return _uri("image/png", buffer.getvalue())


def _uri(mime, data):
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
