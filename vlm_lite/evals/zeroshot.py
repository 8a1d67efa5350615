"""Zero-shot classification: the class whose text lies nearest to the picture, and what a prompt ensemble adds.

Radford et al. 2021, section 3.1.4: each class name is put into several prompts, their embeddings are brought to unit
length, averaged, and brought to unit length again.
"""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoTokenizer

from vlm_lite.data.images import fit_square, open_image
from vlm_lite.data.tokenizer import unknown_words
from vlm_lite.embed import embed_images, embed_strings
from vlm_lite.evals.retrieval import as_numbers, unit_rows
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
    images, classes = (
        unit_rows("image_embeds", image_embeds),
        unit_rows("class_embeds", class_embeds),
    )
    labels = as_numbers("labels", labels, whole=True)
    if labels.shape != (len(images),) or not 0 <= labels.min() <= labels.max() < len(classes):
        raise UserError(
            f"labels have the shape {tuple(labels.shape)}; expected {len(images)} class numbers, each below {len(classes)}."
        )
    similarity = images @ classes.T  # (N, P) x (P, C) -> (N, C)
    own = similarity.gather(1, labels[:, None])  # (N, 1)
    rank = (similarity >= own).sum(dim=1) - 1  # (N,), how many other classes are at least as near
    return {f"top{k}": (rank < k).double().mean().item() for k in ks}


def classify_folder(folder, model, templates=TEMPLATES, classes=None, batch_size=256):
    """Classify a folder of pictures (see `class_folders`) with a CLIP: its name in the zoo, a folder or a hub id.

    Returns {"ensemble", "single", "chance"}: {"top1", "top5"} each in [0, 1], of all templates, of the first alone and
    of guessing; "images"; "classes"; "templates". UserError for a template without one {}, a word that the model's
    tokenizer does not know, and a picture that cannot be decoded.
    """
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise UserError(
            f"the templates are {list(templates)}; expected one {{}} in each, where the class name goes."
        )
    paths, labels, names = class_folders(folder, classes)
    source = resolve_model(model)
    clip = CLIP.from_pretrained(source).to(get_compute().device)
    prompts = [template.replace("{}", name) for name in names for template in templates]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
            unknown = [word for prompt in prompts for word in unknown_words(tokenizer, prompt)]
            if unknown:
                raise UserError(
                    f"words that it does not know, for example {unknown[0]!r}: give prompts (--template) and class names "
                    f"({classes or folder}) in its own words"
                )
        texts = embed_strings(clip, prompts, tokenizer).unflatten(0, (len(names), -1))  # (C, T, P)
    except (UserError, OSError, ValueError) as error:
        raise UserError(
            f"the prompts do not fit {model}, or it has no tokenizer: {str(error).splitlines()[0]}."
        ) from error
    embeds, bar = [], {"desc": "pictures", "unit": "batch", "disable": None, "ncols": 90}
    for start in tqdm(range(0, len(paths), batch_size), **bar):
        part = paths[start : start + batch_size]
        part = np.stack([fit_square(open_image(path, path), clip.image_size) for path in part])
        embeds.append(embed_images(clip, torch.from_numpy(part).permute(0, 3, 1, 2)))
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
    subs = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {sub.name: [] for sub in subs if sub.is_dir() and not is_stray(sub.name)}
    suffixes, strays = PIL.Image.registered_extensions(), []
    for path in (path for sub in subs for path in (sub, *sorted(sub.rglob("*")))):
        name = path.relative_to(folder)
        if path.is_file() and is_stray(name):
            strays.append(name)
        elif path.is_file() and path.suffix.lower() in suffixes and name.parts[0] in found:
            found[name.parts[0]].append(str(path))
    if strays:
        say(
            f"{folder}: {len(strays)} file(s) that no person put there are skipped, for example {strays[0]}."
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty or not found:
        raise UserError(
            f"{folder} has {len(found)} sub-folders, without pictures {empty[:5]}; expected one with pictures for each "
            "class."
        )
    names = {name: name.replace("_", " ") for name in found}
    if classes is not None:
        lines = [line.strip() for line in read_text(classes, "class names").splitlines()]
        pairs = [line.partition("\t")[::2] for line in lines if line]
        names = {key: name.strip() or key.replace("_", " ") for key, name in pairs}
        absent = [name for name in found if name not in names]
        if absent or len(names) < max(2, len(pairs)):
            raise UserError(
                f"{classes} has {len(pairs)} lines with {len(names)} different classes, and does not name the sub-folders "
                f"{absent[:5]} of {folder}. Expected two or more, each once: the sub-folder's name, or sub-folder<TAB>name."
            )
    number = {name: index for index, name in enumerate(names)}
    labels = [number[name] for name, paths in found.items() for _ in paths]
    return [path for paths in found.values() for path in paths], labels, list(names.values())
