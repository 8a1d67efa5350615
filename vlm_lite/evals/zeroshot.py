"""Zero-shot classification: the class whose text lies nearest to the picture, and what a prompt ensemble adds.

Radford et al. 2021, section 3.1.4: each class name is put into several prompts, their embeddings are brought to unit
length, averaged, and brought to unit length again.
"""

from pathlib import Path

import PIL.Image
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoTokenizer

from vlm_lite.data.formats import image_tensor, make_dataset
from vlm_lite.data.tokenizer import unknown_words
from vlm_lite.embed import embed_images, embed_strings
from vlm_lite.evals.retrieval import as_numbers
from vlm_lite.files import UserError, is_stray, read_text, say
from vlm_lite.models.clip import CLIP
from vlm_lite.profiles import get_compute, resolve_model

# The first is the single prompt. The others are the seven that CLIP's authors found to serve photographs best
# (github.com/openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb).
TEMPLATES = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def ensemble(text_embeds):
    """Prompt embeddings (C, T, P) of C classes in T templates -> one unit vector a class (C, P)."""
    return F.normalize(F.normalize(text_embeds, dim=-1).mean(dim=1), dim=-1)


def zeroshot_scores(image_embeds, class_embeds, labels, ks=(1, 5)):
    """{"top1", "top5"}: the part of the pictures, in [0, 1], whose class is among the k nearest by cosine.

    image_embeds (N, P), class_embeds (C, P), labels (N,) whole numbers below C. A wrong class that ties with the right
    one stands before it, so that equal embeddings earn nothing. With k classes or fewer, top-k is 1 but for ties.
    """
    image_embeds, class_embeds = (
        as_numbers(name, embeds)
        for name, embeds in (("image_embeds", image_embeds), ("class_embeds", class_embeds))
    )
    for name, embeds in (("image_embeds", image_embeds), ("class_embeds", class_embeds)):
        if embeds.ndim != 2 or not len(embeds) or not embeds.isfinite().all():
            raise UserError(
                f"{name} of shape {tuple(embeds.shape)} is empty, not (count, width), or holds NaN or "
                "infinite values. Look at the model that made them."
            )
    labels = as_numbers("labels", labels, whole=True)
    if (
        labels.shape != (len(image_embeds),)
        or labels.min() < 0
        or labels.max() >= len(class_embeds)
    ):
        raise UserError(
            f"labels have the shape {tuple(labels.shape)}; expected {len(image_embeds)} class numbers, "
            f"each below {len(class_embeds)}."
        )
    similarity = F.normalize(image_embeds, dim=-1) @ F.normalize(class_embeds, dim=-1).T  # (N, C)
    own = similarity.gather(1, labels[:, None])  # (N, 1)
    rank = (similarity >= own).sum(dim=1) - 1  # (N,), how many other classes are at least as near
    return {f"top{k}": (rank < k).double().mean().item() for k in ks}


def classify_folder(folder, model, templates=TEMPLATES, classes=None, batch_size=256):
    """Classify a folder of pictures (see `class_folders`) with a CLIP: its name in the zoo, a folder or a hub id.

    Returns {"ensemble", "single", "chance"}: {"top1", "top5"} each in [0, 1], of all templates, of the first alone and
    of guessing; "images"; "classes"; "templates". UserError for a template without one {}, a word that the model's
    tokenizer does not know, and a picture that cannot be decoded.
    """
    odd = next((template for template in templates if template.count("{}") != 1), None)
    if odd is not None or not templates:
        raise UserError(
            f"the template {odd!r} has no {{}}, or several; expected one, where the class name goes."
        )
    paths, labels, names = class_folders(folder, classes)
    device, source = get_compute().device, resolve_model(model)
    clip = CLIP.from_pretrained(source).to(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{model} has no tokenizer that loads ({str(error).splitlines()[0]}). Name a CLIP with its "
            "tokenizer files."
        ) from error
    prompts = [template.replace("{}", name) for name in names for template in templates]
    if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
        unknown = {word: None for prompt in prompts for word in unknown_words(tokenizer, prompt)}
        if unknown:
            raise UserError(
                f"{model} does not know {len(unknown)} word(s) of the prompts, for example "
                f"{next(iter(unknown))!r}. Give prompts (--template) and class names"
                f"{f' ({classes})' if classes else ''} in its own words."
            )
    try:
        texts = embed_strings(clip, prompts, tokenizer).unflatten(
            0, (len(names), len(templates))
        )  # (C, T, P)
    except (UserError, ValueError) as error:
        raise UserError(f"a prompt does not fit {model}: {error}") from error
    embeds = []
    for start in tqdm(
        range(0, len(paths), batch_size), desc="pictures", unit="batch", disable=None, ncols=90
    ):
        part = paths[start : start + batch_size]
        cells = make_dataset(
            {
                "image": [{"bytes": None, "path": path} for path in part],
                "image_id": list(range(len(part))),
            }
        )
        embeds.append(embed_images(clip, image_tensor(cells, clip.image_size)[0]))
    embeds = torch.cat(embeds)  # (N, P)
    return {
        "ensemble": zeroshot_scores(embeds, ensemble(texts), labels),
        "single": zeroshot_scores(embeds, texts[:, 0], labels),
        "chance": {f"top{k}": min(1.0, k / len(names)) for k in (1, 5)},
        "images": len(paths),
        "classes": names,
        "templates": list(templates),
    }


def class_folders(folder, classes=None):
    """(paths of the pictures in order, the class number of each, the class names) of one sub-folder a class.

    classes: path of a text file, one class a line: a name that is a sub-folder's (more classes than sub-folders are
    welcome: wrong answers to choose from), or `sub-folder<TAB>name`. Without it the names are those of the sub-folders,
    with spaces for underscores. UserError for an empty sub-folder or one that no line names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; expected one with a sub-folder of pictures for each class."
        )
    suffixes = PIL.Image.registered_extensions()
    inside = [
        (path, path.relative_to(folder))
        for sub in folder.iterdir()
        for path in (sub, *sub.rglob("*"))
    ]
    strays = sorted(str(name) for path, name in inside if is_stray(name) and path.is_file())
    if strays:
        say(
            f"{folder}: {len(strays)} file(s) that no person put there are skipped, for example {strays[0]}."
        )
    found = {
        path.name: []
        for path in sorted(folder.iterdir())
        if path.is_dir() and not is_stray(path.name)
    }
    for path, name in sorted(inside):
        if (
            name.parts[0] in found
            and not is_stray(name)
            and path.suffix.lower() in suffixes
            and path.is_file()
        ):
            found[name.parts[0]].append(path)
    if not found:
        raise UserError(f"{folder} has no sub-folders; expected one of pictures for each class.")
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise UserError(
            f"{len(empty)} sub-folder(s) of {folder} have no pictures, for example {empty[0]!r}. Put some "
            "there, or take the folder away."
        )
    names = (
        {name: name.replace("_", " ") for name in found}
        if classes is None
        else _read_classes(classes)
    )
    absent = [name for name in found if name not in names]
    if absent:
        raise UserError(
            f"{classes} does not name {len(absent)} of {len(found)} sub-folder(s) of {folder}, for example "
            f"{absent[0]!r}. Expected one class a line: the sub-folder's name, or sub-folder<TAB>name."
        )
    number = {name: index for index, name in enumerate(names)}
    pairs = [(path, number[name]) for name, paths in found.items() for path in paths]
    return [str(path) for path, _ in pairs], [label for _, label in pairs], list(names.values())


def _read_classes(path):
    """{sub-folder: class name} of a text file."""
    text = read_text(path, "one class name a line")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = {}
    for line in lines:
        key, _, name = line.partition("\t")
        if key in names:
            raise UserError(f"{path} names {key!r} twice. Expected each class once.")
        names[key] = name.strip() or key.replace("_", " ")
    if len(names) < 2:
        raise UserError(f"{path} has {len(names)} class names; expected two or more, one a line.")
    return names
