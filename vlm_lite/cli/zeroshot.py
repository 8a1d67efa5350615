"""`vlm-lite eval zeroshot`: a CLIP on a folder of images, one sub-folder a class.

Radford et al. 2021, section 3.1.4: each class name is put into several prompts, whose embeddings are averaged.
"""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from vlm_lite.data.images import fit_square, open_image
from vlm_lite.data.tokenizer import unknown_words
from vlm_lite.embed import embed_images, embed_strings
from vlm_lite.files import UserError, is_stray, read_text, say
from vlm_lite.lessons.retrieval import zeroshot_scores
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


def classify_folder(folder, model, templates=TEMPLATES, classes=None, batch_size=256):
    """Classify a folder of images (see `class_folders`) with a CLIP: its name in the zoo, a folder or a hub id.

    Returns {"ensemble", "single", "chance"}: {"top1", "top5"} each in [0, 1], of all templates, of the first alone and
    of guessing; "images"; "classes"; "templates". UserError for a template without one {}, a word that the model's
    tokenizer does not know, and an image that cannot be decoded.
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
        "ensemble": zeroshot_scores(embeds, texts.mean(dim=1), labels),
        "single": zeroshot_scores(embeds, texts[:, 0], labels),
        "chance": {f"top{k}": min(1.0, k / len(names)) for k in (1, 5)},
        "images": len(paths),
        "classes": names,
        "templates": list(templates),
    }


def class_folders(folder, classes=None):
    """(paths of the images in order, the class number of each, the class names) of one sub-folder a class.

    classes: path of a text file, one class a line: a name that is a sub-folder's (more classes than sub-folders are
    welcome: wrong answers to choose from), or `sub-folder<TAB>name`. Without it the names are those of the sub-folders,
    with spaces for underscores. UserError for an empty sub-folder or one that no line names.
    """
    folder, suffixes = Path(folder), PIL.Image.registered_extensions()
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    strays = [path for path in files if is_stray(path)]
    found = {sub.name: [] for sub in sorted(folder.glob("*/")) if not is_stray(sub.name)}
    for path in files:
        if path.suffix.lower() in suffixes and path.parts[0] in found and not is_stray(path):
            found[path.parts[0]].append(str(folder / path))
    if strays:
        say(
            f"{folder}: {len(strays)} file(s) that no person put there are skipped, for example {strays[0]}."
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty or not found:
        raise UserError(
            f"{folder} has {len(found)} sub-folders, without images {empty[:5]}; expected one with images for each "
            "class."
        )
    names = {name: name.replace("_", " ") for name in found}
    if classes is not None:
        lines = [line.strip() for line in read_text(classes, "class names").splitlines()]
        pairs = [line.partition("\t")[::2] for line in lines if line]
        names = {key: name.strip() or key.replace("_", " ") for key, name in pairs}
        absent = [name for name in found if name not in names]
        different = len({*names.values()})
        if absent or different < max(2, len(pairs)):
            raise UserError(
                f"{classes} has {len(pairs)} lines with {different} different classes, and does not name the sub-folders "
                f"{absent[:5]} of {folder}. Expected two or more, each once: the sub-folder's name, or sub-folder<TAB>name."
            )
    number = {name: index for index, name in enumerate(names)}
    labels = [number[name] for name, paths in found.items() for _ in paths]
    return [path for paths in found.values() for path in paths], labels, list(names.values())
