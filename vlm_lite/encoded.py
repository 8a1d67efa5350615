"""One record from file to figure: images, their frozen features, and what is said and asked about each of them."""

import dataclasses

import torch

from vlm_lite.data.formats import image_tensor
from vlm_lite.data.shapes import load_shapes
from vlm_lite.embed import CLIP_MEAN, CLIP_STD, pixel_values
from vlm_lite.evals.probes import run_probes
from vlm_lite.features import cache_features, weights_hash
from vlm_lite.lessons.language import CAPTION_PROMPT, short_prompt
from vlm_lite.lessons.vqa import vqa_scores
from vlm_lite.lessons.world import BACKGROUND
from vlm_lite.profiles import get_compute


@dataclasses.dataclass(frozen=True)
class EncodedDataset:
    """N images in one order: what belongs to an image has its number in every list.

    ids: image ids; images: uint8 (N, 3, S, S); features: (N, T, D), fp16; captions: N lists of strings; turns: N lists
    of (prompt, answer), a caption and then the image's questions; questions: the table of all questions; descriptions: N
    scenes in words, where there are any.
    """

    ids: list
    images: torch.Tensor
    features: torch.Tensor
    captions: list
    turns: list
    questions: object
    descriptions: list = ()

    def of(self, rows):
        """The features (Q, T, D) of the images that `rows` of the table of questions are about."""
        number = {image_id: k for k, image_id in enumerate(self.ids)}
        return self.features[[number[row["image_id"]] for row in rows]]


def patch_features(vision, images, *, layer=-2, **options):
    """Frozen patch features (N, T, D) in fp16 of uint8 images, cached on disk by weights, layer, transform and pixels.

    vision: of `models.vision.load_vision`. On a GPU they are computed in its half precision, which the name of the cache
    then holds as well.
    """
    vision.eval()
    device = next(vision.parameters()).device
    precision = "no" if device.type == "cpu" else get_compute().mixed_precision
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    key = {
        "weights": weights_hash(vision),
        "config": repr(vision.config),  # the same weights, another activation
        "layer": layer,
        "mean": CLIP_MEAN,
        "std": CLIP_STD,  # timm's are in its config
    }

    def encode(batch):
        with torch.autocast(device.type, half, enabled=half is not None):
            return vision.patch_features(vision.pixel_values(batch.to(device)), layer=layer)

    return cache_features(
        encode, images, key=key if half is None else {**key, "precision": precision}, **options
    )


def encode_shapes(vision, split, count, progress=True):
    """`count` images of a split of Shapes, read from its files and encoded by `vision` -> EncodedDataset."""
    captions, questions = load_shapes(split, count, progress=progress)
    images, ids = image_tensor(captions)
    texts = captions["captions"][:]
    turns = {i: [(CAPTION_PROMPT, five[0])] for i, five in zip(ids, texts, strict=True)}
    columns = (questions[name][:] for name in ("image_id", "question", "answer"))
    for image_id, question, answer in zip(*columns, strict=True):
        turns[image_id].append((short_prompt(question), answer))
    features = patch_features(vision, images, progress=progress)
    descriptions = captions["description"][:]
    return EncodedDataset(
        ids, images, features, texts, list(turns.values()), questions, descriptions
    )


def probe(model, data, limit=1000, **options):
    """`evals.probes.run_probes` on the first `limit` questions of an EncodedDataset, in its controls as well.

    model: a VLM with `encode` and `generate`. An empty image is one of the background's colour.
    """
    rows = data.questions.select(range(min(limit, len(data.questions))))
    blank = torch.tensor(BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1)
    blank = model.encode(pixel_values(blank.expand(1, 3, *data.images.shape[2:])))[0]
    return run_probes(
        model,
        data.features,
        rows,
        blank_features=blank,
        image_ids=data.ids,
        **options,
    )


def vqa(model, data, limit, prompt):
    """VQA accuracy of each of the first `limit` questions of an EncodedDataset, put by `prompt`; an array."""
    rows = data.questions.select(range(min(limit, len(data.questions)))).remove_columns("image")
    asked = [prompt(question) for question in rows["question"][:]]
    return vqa_scores(model.generate(data.of(rows).float(), asked, max_new_tokens=4), rows)


@torch.no_grad()
def occlusion(model, image, prompt, answer, patch=16):
    """Where the queries read, and on which patch the answer depends: maps (2, S / patch, S / patch) of an image (3, S, S).

    The first: the attention weights of the last layer, averaged over queries and heads. The second: by how much the
    probability of the answer's first token falls when that patch is painted over and the image encoded again.
    """
    side = image.shape[-1] // patch
    copies = image.repeat(side * side + 1, 1, 1, 1)  # the last stays as it is
    background = torch.tensor(BACKGROUND, dtype=torch.uint8).view(3, 1, 1)
    for k in range(side * side):
        top, left = k // side * patch, k % side * patch
        copies[k, :, top : top + patch, left : left + patch] = background
    features = model.encode(pixel_values(copies))
    tokens = (
        model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        for text in (prompt, f" {answer}")
    )
    ids, right = (each.to(features.device) for each in tokens)
    ids = ids.expand(len(copies), -1)
    logits = model(features, ids, torch.ones_like(ids))[:, -1]  # (patches + 1, V)
    p = logits.softmax(dim=-1)[:, right[0, 0]].cpu()
    weights = model.connector.qformer.layers[-1].cross_attention.weights[-1]  # (H, Q, N)
    return torch.stack([weights.mean(dim=(0, 1)).cpu(), p[-1] - p[:-1]]).view(2, side, side)
