"""The commands `vlm-lite eval ...`: official files in, a table out, and the same as JSON with `--json FILE`.

Tables are in percent where the field prints percent. The JSON holds what the Python functions return: parts of 1, but
`overall` and the types of VQA in percent, and caption scores as pycocoevalcap gives them.
"""

import argparse
import contextlib
import gc
import io
from pathlib import Path

from vlm_lite.files import UserError, refuse_input, write_json

EXAMPLES = {  # shown by --help
    "captions": """vlm-lite eval captions --refs captions_val2014.json --results results.json --partial

Official results are a JSON list of {"image_id", "caption"}, one an image. With --partial the images without
a caption are left out (Karpathy's test split is 5,000 of val2014). CIDEr then weighs words by those images
only: figures of different sets cannot be compared.""",
    "vqa": """vlm-lite eval vqa --questions v2_OpenEnded_mscoco_val2014_questions.json \\
      --annotations v2_mscoco_val2014_annotations.json --results results.json

Official results are a JSON list of {"question_id", "answer"}. The official rule normalises answers only where
the ten people differ: "Yes" against ten "yes" scores 0. --normalize always does it always.""",
    "pope": """vlm-lite eval pope --labels coco_pope_random.json --answers answers.jsonl

Answers are JSON lines with `question_id` and `text` (or `answer`). With several splits give as many label and
answer files, in the same order; their mean is printed too, which is what papers often report. The official
parser takes for yes whatever is not plainly no; the strict one wants yes or no as the first word.""",
    "mmbench": """vlm-lite eval mmbench --tsv mmbench_dev_en.tsv --predictions predictions.tsv

Predictions are a TSV with `index` and `prediction`; MMBench's own with a column more will do. circular: every
rotation of a question right; plain: its first. Letters are read by exact matching, without a judge model.""",
    "retrieval": """vlm-lite eval retrieval --embeddings embeddings.npz

Make the file with numpy.savez("embeddings.npz", image_embeds=a, text_embeds=b, image_of_text=c): (N, P),
(M, P) and (M,), the picture's row of each text. With `texts`, (M,) strings, identical ones count as one.""",
    "zeroshot": """vlm-lite eval zeroshot --images pictures/ --model openai/clip-vit-base-patch16

pictures/ has one sub-folder of pictures a class. --classes names.txt: one class a line, the name of a
sub-folder or sub-folder<TAB>name. The first template is the single prompt, all together the ensemble.""",
}


def add_eval(commands):
    """Register `eval` and its benchmarks with the argparse subparsers of `vlm-lite`."""
    benchmarks = commands.add_parser(
        "eval", help="score a model's output files as the official tools do"
    )
    benchmarks = benchmarks.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)

    def add(name, text, call, *files, partial=True):
        parser = benchmarks.add_parser(
            name,
            help=text,
            description=f"Scores: {text}.",
            epilog="example:\n  " + EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option, about in files:
            parser.add_argument(option, metavar="FILE", required=True, help=about)
        parser.add_argument("--json", metavar="FILE", help="write the scores here too")
        if partial:
            parser.add_argument(
                "--partial",
                action="store_true",
                help="score what both files share, although ids are missing or unknown",
            )
        parser.set_defaults(call=lambda options: _run(call, options))
        return parser

    captions = add(
        "captions",
        "BLEU, METEOR, ROUGE-L, CIDEr, SPICE",
        eval_captions,
        ("--refs", "COCO captions annotations"),
        ("--results", "COCO caption results"),
    )
    captions.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="some of BLEU METEOR ROUGE_L CIDEr SPICE"
    )
    captions.add_argument(
        "--tokenizer",
        choices=("ptb", "whitespace"),
        default="ptb",
        help="ptb is the official one and needs Java (default)",
    )
    vqa = add(
        "vqa",
        "VQA v2 accuracy",
        eval_vqa,
        ("--questions", "VQA v2 questions"),
        ("--annotations", "VQA v2 annotations"),
        ("--results", "VQA results"),
    )
    vqa.add_argument(
        "--normalize", choices=("official", "always"), default="official", help="(default official)"
    )
    pope = add("pope", "accuracy, precision, recall, F1 and yes ratio of POPE", eval_pope)
    pope.add_argument(
        "--labels", metavar="FILE", nargs="+", required=True, help="POPE's JSON lines with labels"
    )
    pope.add_argument(
        "--answers",
        metavar="FILE",
        nargs="+",
        required=True,
        help="JSON lines of answers, a file each",
    )
    pope.add_argument(
        "--parser", choices=("official", "strict"), default="official", help="(default official)"
    )
    mmbench = add(
        "mmbench",
        "circular and plain accuracy of MMBench",
        eval_mmbench,
        ("--tsv", "MMBench's TSV"),
        ("--predictions", "TSV with index and prediction"),
    )
    mmbench.add_argument(
        "--groups", type=int, metavar="N", help="score N whole questions, with all their rotations"
    )
    mmbench.add_argument("--seed", type=int, default=0, help="which N (default 0)")
    add(
        "retrieval",
        "Recall@1, 5 and 10 both ways",
        eval_retrieval,
        ("--embeddings", "NPZ with image_embeds, text_embeds, image_of_text"),
        partial=False,
    )
    zeroshot = add(
        "zeroshot",
        "top-1 and top-5 of a CLIP on a folder of pictures",
        eval_zeroshot,
        partial=False,
    )
    zeroshot.add_argument(
        "--images", metavar="FOLDER", required=True, help="one sub-folder of images a class"
    )
    zeroshot.add_argument(
        "--classes",
        metavar="FILE",
        help="class names, one a line (default: the sub-folders' names)",
    )
    zeroshot.add_argument(
        "--model",
        metavar="NAME",
        default="openai/clip-vit-base-patch16",
        help="a CLIP: name in the zoo, folder or hub id (default openai/clip-vit-base-patch16)",
    )
    zeroshot.add_argument(
        "--template",
        metavar="TEXT",
        action="append",
        dest="templates",
        help="a prompt with {} for the class; repeat for an ensemble (default: 8 for photographs)",
    )


def _run(call, options):
    refuse_input(options.json, {**vars(options), "json": None})
    gc.disable()  # a file of a million records holds no cycles, and the collector would walk them again and again
    try:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            result = call(options)
    finally:
        gc.enable()
    if options.json:  # before anything is printed: whoever reads may stop reading
        write_json(options.json, result)
    print(shown.getvalue(), end="")
    if options.json:
        print(f"written to {options.json}")


def _table(header, *rows):
    """Print rows of a name and numbers, in columns."""
    import pandas

    table = pandas.DataFrame(list(rows), columns=header).set_index(header[0])
    print(table.rename_axis(None).rename_axis(columns=header[0]).to_string())


def _percent(value):
    return f"{100 * value:.2f}"


def _say_partial(counts, what):
    if counts["missing"] or counts["unknown"]:
        print(
            f"PARTIAL: {counts['scored']} {what} scored, {counts['missing']} without an answer left out, "
            f"{counts['unknown']} unknown ids ignored. Not comparable with figures of the whole."
        )


def eval_captions(options):
    """`vlm-lite eval captions`."""
    from vlm_lite.data.records import read_caption_lists, refuse_empty
    from vlm_lite.evals.answers import match, read_results
    from vlm_lite.evals.captions import (
        METRICS,
        SpiceError,
        caption_scores,
        find_java,
        spice_obstacle,
    )

    _, references = read_caption_lists(options.refs)
    refuse_empty(references, "captions", options.refs)
    given = read_results(options.results, "image_id", "caption")
    results, counts = match(
        references,
        given,
        file=options.results,
        against=options.refs,
        name="image_id",
        partial=options.partial,
    )
    metrics, obstacle = options.metrics, ""
    if metrics is None:
        metrics = METRICS if options.tokenizer == "ptb" else ("BLEU", "ROUGE_L", "CIDEr")
        obstacle = (
            spice_obstacle(find_java())
            if options.tokenizer == "ptb"
            else "it needs the official tokeniser"
        )
        metrics = metrics if obstacle else (*metrics, "SPICE")
    asked = {i: references[i] for i in results}
    try:
        scores = caption_scores(asked, results, metrics, options.tokenizer)
    except SpiceError as error:
        if options.metrics is not None:
            raise
        obstacle, scores = str(error), caption_scores(asked, results, METRICS, options.tokenizer)
    _table(
        ("metric", "score", "times 100"),
        *(
            (name, f"{value:.4f}", _percent(value))
            for name, value in scores.items()
            if name != "tokenizer"
        ),
    )
    print(f"{len(results)} images; tokeniser: {scores['tokenizer']}")
    if obstacle:
        print(f"SPICE is left out: {obstacle}")
        scores["SPICE_left_out"] = obstacle
    _say_partial(counts, "images")
    return {**scores, "count": len(results), **counts}


def eval_vqa(options):
    """`vlm-lite eval vqa`."""
    from vlm_lite.data.records import read_vqa_rows
    from vlm_lite.evals.answers import match, read_results
    from vlm_lite.lessons.vqa import score_vqa

    rows, _ = read_vqa_rows(options.questions, options.annotations, complete=False)
    given = read_results(options.results, "question_id", "answer")
    answers, counts = match(
        rows["question_id"],
        given,
        file=options.results,
        against=options.questions,
        name="question_id",
        partial=options.partial,
    )
    if counts["missing"]:
        kept = [k for k, question_id in enumerate(rows["question_id"]) if question_id in answers]
        rows = {name: [values[k] for k in kept] for name, values in rows.items()}
    scores = score_vqa(list(answers.values()), rows, options.normalize)
    types = [
        (f"  {name}", f"{value:.2f}")
        for kind in ("per_answer_type", "per_question_type")
        for name, value in scores.get(kind, {}).items()
    ]
    _table(("accuracy", "percent"), ("overall", f"{scores['overall']:.2f}"), *types)
    print(f"{scores['count']} questions; normalize: {scores['normalize']}")
    _say_partial(counts, "questions")
    return {**scores, **counts}


def eval_pope(options):
    """`vlm-lite eval pope`."""
    from vlm_lite.lessons.pope import pope_scores, read_pope

    if len(options.labels) != len(options.answers):
        raise UserError(
            f"there are {len(options.labels)} label file(s) and {len(options.answers)} answer file(s); "
            "expected one answer file a label file, in the same order."
        )
    names, splits = ("accuracy", "precision", "recall", "f1", "yes_ratio"), []
    for labels, answers in zip(options.labels, options.answers, strict=True):
        said, truth, counts = read_pope(labels, answers, partial=options.partial)
        splits.append({"labels": labels, **pope_scores(said, truth, options.parser), **counts})
    mean = {name: sum(scores[name] for scores in splits) / len(splits) for name in names}
    total = {
        name: sum(scores[name] for scores in splits)
        for name in ("count", "neither", "scored", "missing", "unknown")
    }
    shown = [(Path(scores["labels"]).stem, scores) for scores in splits] + [("mean", mean)] * (
        len(splits) > 1
    )
    _table(
        ("percent", *names),
        *((name, *(_percent(scores[key]) for key in names)) for name, scores in shown),
    )
    print(
        f"{total['count']} questions; parser: {options.parser}"
        + (f"; {total['neither']} answers neither yes nor no" if options.parser == "strict" else "")
    )
    _say_partial(total, "questions")
    return (
        splits[0]
        if len(splits) == 1
        else {**mean, **total, "parser": options.parser, "splits": splits}
    )


def eval_mmbench(options):
    """`vlm-lite eval mmbench`."""
    from vlm_lite.lessons import mmbench

    rows = everything = mmbench.read_mmbench(options.tsv)
    if options.groups is not None:
        rows = mmbench.sample_groups(rows, options.groups, options.seed)
    rows, predictions, counts = mmbench.match_predictions(
        rows,
        mmbench.read_predictions(options.predictions, everything),
        file=options.predictions,
        against=options.tsv,
        partial=options.partial,
        known=[row["index"] for row in everything],
    )
    scores = mmbench.mmbench_scores(rows, predictions)
    parts = [
        (name, part)
        for key in mmbench.GROUPINGS
        for name, part in scores.get(f"per_{key}", {}).items()
    ]
    columns = ("circular", "plain", "chance_circular", "chance_plain")
    _table(
        ("percent", *columns, "questions"),
        *(
            (name, *(_percent(part[key]) for key in columns), part["questions"])
            for name, part in (("overall", scores), *((f"  {name}", part) for name, part in parts))
        ),
    )
    print(
        f"{scores['questions']} questions in {scores['row_count']} rows; no letter could be read from "
        f"{scores['unanswered']} answers"
    )
    _say_partial(counts, "rows")
    sample = {} if options.groups is None else {"groups": options.groups, "seed": options.seed}
    return {**scores, **counts, **sample}


def eval_retrieval(options):
    """`vlm-lite eval retrieval`."""
    from vlm_lite.lessons.retrieval import chance_recall, read_embeddings, recall_at_k

    arrays = read_embeddings(options.embeddings)
    try:
        found = recall_at_k(**arrays)
    except UserError as error:
        raise UserError(f"{options.embeddings}: {error}") from error
    images, texts = len(arrays["image_embeds"]), len(arrays["text_embeds"])
    relevant = {
        "image_to_text": (texts, max(1, round(texts / images))),
        "text_to_image": (images, 1),
    }
    rows, result = [], {}
    for way, recalls in found.items():
        name, result[way] = way.replace("_", " "), {f"R@{k}": r for k, r in recalls.items()}
        by_chance = [chance_recall(relevant[way][0], k, relevant[way][1]) for k in recalls]
        rows.append((name, *map(_percent, recalls.values())))
        rows.append((f"{name} by chance", *map(_percent, by_chance)))
    _table(("percent", *result["image_to_text"]), *rows)
    print(
        f"{images} images, {texts} texts"
        + ("; identical texts count as one" if arrays.get("texts") else "")
    )
    return {**result, "images": images, "texts": texts}


def eval_zeroshot(options):
    """`vlm-lite eval zeroshot`."""
    from vlm_lite.cli.zeroshot import TEMPLATES, classify_folder

    scores = classify_folder(
        options.images, options.model, options.templates or TEMPLATES, options.classes
    )
    rows = [
        (f"ensemble of {len(scores['templates'])}", scores["ensemble"]),
        (f"single: {scores['templates'][0]}", scores["single"]),
        ("chance", scores["chance"]),
    ]
    _table(
        ("percent", "top-1", "top-5"),
        *((name, _percent(v["top1"]), _percent(v["top5"])) for name, v in rows),
    )
    print(f"{scores['images']} pictures, {len(scores['classes'])} classes; {options.model}")
    return scores
