"""One page about one VLM: its scores with their controls, images with its answers, and its failures, HTML and JSON.

The page holds everything it shows (images as data, no script, nothing loaded), and every text from a model or a data
file is escaped.
"""

import base64
import io
import time
from html import escape
from pathlib import Path

import pandas
from PIL import Image

import vlm_lite
from vlm_lite import plots
from vlm_lite.data.shapes import find_pairs, load_shapes
from vlm_lite.encoded import encode_shapes, patch_features, probe
from vlm_lite.evals.captions import caption_scores
from vlm_lite.evals.probes import BridgeScore, Interval, bootstrap_interval
from vlm_lite.figures import enlarge
from vlm_lite.files import UserError, atomic_write, write_json
from vlm_lite.lessons.controls import (
    majority_answer,
    pair_scores,
    shuffle_patches,
    type_prior,
)
from vlm_lite.lessons.language import CAPTION_PROMPT, short_prompt
from vlm_lite.lessons.vqa import vqa_scores
from vlm_lite.lessons.world import IMAGE_SIZE
from vlm_lite.models.vlm import load_vlm

ORDER = ("majority", "type prior", "blind", "blank", "shuffled", "patch-shuffled", "vlm", "oracle")
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f27}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;border-bottom:1px solid #e5e7eb;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}figure{display:inline-block;width:11rem;margin:.5rem;
vertical-align:top;font-size:.85rem}.wrong{color:#b3420a}.right{color:#0072b2}"""


def collect(run, *, questions=500, pictures=1000):
    """(facts, {image_id: image}) of the VLM in the folder or zoo entry `run`, on the held-out images of Shapes.

    facts is what the JSON holds: accuracies in [0, 1] with 95% intervals by condition (see ORDER) and by type of
    question, gain, bridge score, pairs, caption scores (tokenizer "whitespace"), and answers. UserError for a folder
    that holds no VLM, and for one whose vision encoder does not take Shapes' images.
    """
    started, vlm = time.time(), load_vlm(run)
    if vlm.vision.image_size != IMAGE_SIZE:
        raise UserError(
            f"{run}: its vision encoder takes images of {vlm.vision.image_size} pixels, those of Shapes have "
            f"{IMAGE_SIZE}. The report asks about the Shapes world: score photographs with vlm-lite eval."
        )
    data = encode_shapes(vlm.vision, "val", pictures, progress=False)
    probed = probe(vlm, data, limit=questions)
    rows = data.questions.remove_columns("image").to_pandas()[: probed.count]
    train = load_shapes("train", pictures, progress=False)[1]
    types, answers = train["question_type"][:], train["answer"][:]
    disordered = shuffle_patches(data.images, vlm.vision.patch_size)
    disordered = patch_features(vlm.vision, disordered, progress=False)
    at = [data.ids.index(image_id) for image_id in rows["image_id"]]
    said = {
        "majority": [majority_answer(answers)] * len(rows),
        "type prior": type_prior(types, answers, rows["question_type"]),
        "patch-shuffled": vlm.generate(
            disordered[at].float(), list(map(short_prompt, rows["question"])), max_new_tokens=4
        ),
        **probed.answers,
    }
    given = {"answers": list(map(list, rows["answers"]))}
    scores = pandas.DataFrame(
        {name: vqa_scores(said[name], given) for name in ORDER if name in said}
    )
    pairs = find_pairs(rows["question"], rows["image_id"], rows["answer"])
    five = dict(enumerate(data.captions[:100]))
    seen = data.features[:100].float()
    written = vlm.generate(seen, [CAPTION_PROMPT] * len(seen), max_new_tokens=48)
    asked = rows[["image_id", "question"]].assign(**{"right answer": rows["answer"]})
    asked = asked.assign(**{name: said[name] for name in ("vlm", "blind", "shuffled")})
    kinds, asked["score"] = rows["question_type"], scores["vlm"]
    wrong = asked[asked["score"] <= 0.5].groupby(kinds)
    by_type = scores.groupby(kinds).mean()
    by_type.insert(0, "questions", kinds.value_counts())
    by_type.insert(1, "wrong", wrong.size())
    facts = {
        "model": str(run),
        "made by": f"vlm-lite {vlm_lite.__version__}, vlm-lite report {run}",
        "pictures": len(data.images),
        "questions": len(rows),
        "accuracy": {name: vars(bootstrap_interval(values)) for name, values in scores.items()},
        "multimodal gain": vars(probed.gain),
        "bridge score": vars(probed.bridge),
        "pairs": {
            "count": len(pairs),
            "both right": {
                name: float(pair_scores(values, pairs).mean())
                for name, values in scores.items()
                if pairs
            },
        },
        "by type": by_type.fillna(0).T.to_dict(),
        "captions": {
            name: caption_scores(five, dict(enumerate(texts)), ("BLEU", "CIDEr"), "whitespace")
            for name, texts in (
                ("own", written),
                ("of the next picture", written[1:] + written[:1]),
            )
        },
        "examples": asked[:10].to_dict("records"),
        "failures": {kind: part[:5].to_dict("records") for kind, part in wrong},
        "written": [
            {"image_id": data.ids[k], "vlm": written[k], "reference": five[k][0]} for k in range(5)
        ],
        "seconds": round(time.time() - started),
    }
    return facts, dict(zip(data.ids, data.images, strict=True))


def page(facts, pictures):
    """The HTML page of what `collect` gives; all texts are escaped."""

    def table(rows):
        return pandas.DataFrame(rows).T.to_html(float_format="{:.2f}".format, na_rep="", border=0)

    def figure(image_id, *lines):
        buffer = io.BytesIO()
        Image.fromarray(enlarge(pictures[image_id], 128)).save(buffer, "png")
        text = "<br>".join(f'<span class="{kind}">{escape(line)}</span>' for kind, line in lines)
        uri = _uri("image/png", buffer.getvalue())
        return f'<figure><img src="{uri}" alt="">{text}</figure>'

    def answered(row):
        others = f"right: {row['right answer']}; blind: {row['blind']}; another picture: {row['shuffled']}"
        verdict = "right" if row["score"] > 0.5 else "wrong"
        said = (verdict, f"says {row['vlm']}")
        return figure(row["image_id"], ("", row["question"]), said, ("", others))

    board = {name: Interval(**score) for name, score in facts["accuracy"].items()}
    chart = plots.controls_bars(board, title=f"{facts['questions']} questions, held-out pictures")
    gain, bridge = Interval(**facts["multimodal gain"]), BridgeScore(**facts["bridge score"])
    title = f"Does {facts['model']} look?"
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(facts['made by'])}: {facts['questions']} questions about "
        f"{facts['pictures']} pictures of the Shapes world that no part of the course was trained on.</p>",
        f'<h2>Scores and controls</h2><img src="{_uri(*chart.to_bytes())}" alt="accuracy by condition">',
        f"<p>Multimodal gain (the VLM minus blind): <b>{gain}</b>. Bridge score (the gain as a share of oracle minus "
        f"blind): <b>{escape(str(bridge))}</b>. VQA accuracy, normalize: official; 95% bootstrap intervals over "
        "questions.</p>",
        table(facts["by type"]),
        f"<h2>Complementary pairs</h2><p>{facts['pairs']['count']} pairs: one question, two pictures, two answers; "
        "both must be right. Who does not look has none.</p>",
        table({"both right": facts["pairs"]["both right"]}),
        "<h2>Pictures with answers</h2>",
        *map(answered, facts["examples"]),
        "<h2>Captions of 100 pictures</h2>",
        table(facts["captions"]),
        *(
            figure(r["image_id"], ("right", r["vlm"]), ("", f"the file's: {r['reference']}"))
            for r in facts["written"]
        ),
        "<h2>Failures, by kind</h2>",
    ]
    for kind, rows in facts["failures"].items():
        parts += [f"<h3>{escape(kind)}</h3>", *map(answered, rows)]
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


def _uri(mime, data):
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
