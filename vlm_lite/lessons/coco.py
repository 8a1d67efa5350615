"""Notebook 03's VLM between OpenAI's CLIP and GPT-2, on COCO.

Generated from notebooks/03t_photographs.py by `make notebooks`: edit the notebook.
"""

from typing import NamedTuple

import torch
from accelerate import PartialState

from vlm_lite.data.formats import image_tensor
from vlm_lite.data.photographs import FULL, load_photographs
from vlm_lite.encoded import patch_features
from vlm_lite.evals.captions import caption_scores
from vlm_lite.evals.probes import bootstrap_interval, multimodal_gain, run_probes
from vlm_lite.lessons.instructions import as_pairs
from vlm_lite.lessons.language import CAPTION_PROMPT
from vlm_lite.lessons.vqa import vqa_scores

QFORMER = dict(
    num_query_tokens=32,
    width=768,
    num_layers=6,
    num_heads=12,
    mlp_width=3072,
    cross_attention_frequency=2,
)
SHORT = "Answer the question using a single word or phrase."  # LLaVA-1.5's words for it


class Photos(NamedTuple):
    """N images: features (N, T, Dv) of the frozen vision encoder, image ids, and the three tables of the common format."""

    features: torch.Tensor
    ids: list
    captions: object
    questions: object
    instructions: object


def load_photos(vision, split, choice=FULL, *, mirror=None, progress=True):
    """The Photos of a split, "train" or "val": downloaded, decoded and encoded once. See `load_photographs`."""
    with PartialState().main_process_first():
        tables = load_photographs(split, choice, mirror=mirror, progress=progress)
        images, ids = image_tensor(tables.captions, fit=vision.fit)
        return Photos(patch_features(vision, images, progress=progress), ids, *tables)


def columns(table, *names):
    return zip(*(table[name][:] for name in ("image_id", *names)), strict=True)


def photo_texts(photos, prompt):
    """What is said of each image: {"captions", "instructions", "vqa"} -> N lists of exchanges, a list for each image."""
    texts = {
        name: {image_id: [] for image_id in photos.ids}
        for name in ("captions", "instructions", "vqa")
    }
    for image_id, five in columns(photos.captions, "captions"):
        texts["captions"][image_id] += [(CAPTION_PROMPT, text) for text in five]
    for image_id, messages in columns(photos.instructions, "conversation"):
        texts["instructions"][image_id].append(as_pairs(messages, prompt))
    for image_id, question, answer in columns(photos.questions, "question", "answer"):
        texts["vqa"][image_id].append((prompt(f"{question} {SHORT}"), answer))
    return {name: list(of.values()) for name, of in texts.items()}


def evaluate_photos(vlm, held_out, prompt, *, images=200, questions=400, words=32, seed=0):
    """{name: [value, low, high]} with 95% bootstrap intervals over captions or questions; `words`: tokens a caption.

    CIDEr of captions, and its two controls: "CIDEr blind", one caption for all, and "CIDEr shuffled", each image with
    the caption of the next. VQA accuracy, also by type of answer, of the blind model, and of an oracle that reads the
    five captions instead of the image. Then what another image (swap), an empty one (hide) and none (sees) cost in VQA
    accuracy; "concrete" is CIDEr less CIDEr shuffled.
    """
    count = min(images, len(held_out.ids))
    said = vlm.generate(held_out.features[:count], [CAPTION_PROMPT] * count, max_new_tokens=words)
    blind = vlm.generate(None, [CAPTION_PROMPT], max_new_tokens=words) * count
    references = dict(enumerate(held_out.captions["captions"][:count]))
    cider = {
        name: caption_scores(references, dict(enumerate(texts)), metrics=("CIDEr",), each=True)[
            "CIDEr_each"
        ]
        for name, texts in (
            ("CIDEr", said),
            ("CIDEr blind", blind),
            ("CIDEr shuffled", said[1:] + said[:1]),
        )
    }
    told = dict(columns(held_out.captions, "captions"))
    rows = [
        {
            "image_id": image_id,
            "question": question,
            "question_type": kind,
            "answers": answers,
            "description": None,
        }
        for image_id, question, kind, answers in columns(
            held_out.questions, "question", "answer_type", "answers"
        )
    ][:questions]
    read = [f"{' '.join(told[row['image_id']])} {row['question']} {SHORT}" for row in rows]
    oracle = vlm.generate(None, [prompt(text) for text in read], max_new_tokens=min(8, words))
    vision = vlm.vision
    grey = torch.full((1, 3, *[vision.image_size] * 2), 127, dtype=torch.uint8)
    result = run_probes(
        vlm,
        held_out.features,
        rows,
        image_ids=held_out.ids,
        seed=seed,
        max_new_tokens=min(8, words),
        prompt=lambda text: prompt(f"{text} {SHORT}"),
        blank_features=vlm.encode(vision.pixel_values(grey))[0].cpu(),
    )
    vqa = result.scores
    found = {
        **{name: bootstrap_interval(values) for name, values in cider.items()},
        "VQA": result.accuracy["vlm"],
        "blind": result.accuracy["blind"],
        "oracle": bootstrap_interval(vqa_scores(oracle, rows)),
        **{f"VQA {kind}": part.accuracy["vlm"] for kind, part in result.by_type.items()},
        "swap": multimodal_gain(vqa["vlm"], vqa["shuffled"]),
        "hide": multimodal_gain(vqa["vlm"], vqa["blank"]),
        "concrete": multimodal_gain(cider["CIDEr"], cider["CIDEr shuffled"]),
        "sees": result.gain,
    }
    return {
        name: [round(value, 4) for value in (each.value, each.low, each.high)]
        for name, each in found.items()
    }
