"""The profile `rehearsal`: t4's real sizes without a network, so that its whole path can be run and timed anywhere.

A folder is made that is laid out like the sites t4 downloads from: the hub with t4's models, of their real sizes but
with random weights and tokenizers that were trained here and padded to the real vocabularies; COCO and VQA v2 with
drawn scenes in images of COCO's size; LLaVA-Instruct. t4's own code then chooses, fetches, checks, reads and trains.
Nothing it learns means anything; that it runs, how fast, and in how much memory, does.
"""

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import CLIPConfig

from vlm_lite.data import shapes
from vlm_lite.data.photographs import NAME, VAL_MEMBER, Choice
from vlm_lite.data.sources import MODELS, SOURCES
from vlm_lite.files import UserError, atomic_dir, home, read_json, write_json
from vlm_lite.hub import HUB, locate
from vlm_lite.models.clip import CLIP
from vlm_lite.models.weights import write_weights
from vlm_lite.profiles import REHEARSAL

PICTURE_SIZE = (640, 480)
VERSION = 1  # of what is made here: part of the folder's name


def make_profile(images=64):
    """The Profile `rehearsal`, its mirror made at the first call: about 0.6 GB and half a minute.

    images: how many images the made COCO has; half are to train on, an eighth are held out.
    """
    if images < 16:
        raise UserError(f"a rehearsal with {images} images; expected 16 or more.")
    root = home() / f"rehearsal-{VERSION}" / f"{images}"
    mirror = root / "mirror"
    if not mirror.exists():
        with atomic_dir(mirror) as folder:
            texts = _write_sites(folder, images)
            _write_clip(_model_folder(folder, "clip"), texts)
            _write_gpt2(_model_folder(folder, "gpt2"), texts)
    made = dataclasses.replace(
        REHEARSAL,
        vision_model=str(_model_folder(mirror, "clip")),
        language_model=str(_model_folder(mirror, "gpt2")),
        train_images=images // 2,
        val_images=images // 8,
        mirror=str(mirror),
        reason="t4's sizes with random weights and drawn pictures: it shows that t4 runs and how fast, never how well",
    )
    write_json(home() / "rehearsal.json", dataclasses.asdict(made))  # for `profiles.get_profile`
    return made


def choice(profile):
    """The Choice of photographs that fits a rehearsal's few images."""
    train, val = profile.train_images, profile.val_images
    return Choice(
        images=train, val_images=val, instructions=train, questions=train, val_questions=2 * val
    )


def _model_folder(mirror, key):
    return Path(locate(f"{HUB}/{MODELS[key]}/resolve/main", str(mirror)))


def _write_clip(folder, texts):
    """OpenAI's CLIP ViT-B/16 in transformers' layout, its config's wrong eos_token_id of 2 included."""
    with torch.device("meta"):
        model = CLIP(CLIPConfig(vision_config={"patch_size": 16}, text_config={"eos_token_id": 2}))
    write_weights(folder / "model.safetensors", random_weights(model), dtype=torch.float16)
    model.config.save_pretrained(folder)
    begin, end = names = "<|startoftext|>", "<|endoftext|>"
    options = {"bos_token": begin, "eos_token": end, "pad_token": end, "model_max_length": 77}
    train_tokenizer(texts, 49_408, names, **options).save_pretrained(folder)


def _write_gpt2(folder, texts):
    """GPT-2, its parameters without the prefix `transformer.` as in the hub's file."""
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = {k.removeprefix("transformer."): v for k, v in random_weights(model).items()}
    weights.pop("lm_head.weight")  # tied to the input
    write_weights(folder / "model.safetensors", weights, dtype=torch.float16)
    config.save_pretrained(folder)
    end = "<|endoftext|>"
    train_tokenizer(texts, 50_257, (end,), eos_token=end).save_pretrained(folder)


def random_weights(model):
    """fp16 weights for a model on the meta device: matrices N(0, 0.02), scales one, all else zero."""
    draw = torch.Generator().manual_seed(0)

    def weight(name, shape):
        if len(shape) > 1:
            return 0.02 * torch.randn(shape, generator=draw)
        return torch.full(shape, float(name.endswith(("weight", "scale"))))

    return {name: weight(name, each.shape).half() for name, each in model.state_dict().items()}


def train_tokenizer(texts, size, special, **options):
    """A byte-level BPE of `size` tokens: what `texts` teach, then unused ones, the `special` ones last as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer, core.decoder = byte_level, decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000, show_progress=False, initial_alphabet=byte_level.alphabet()
        ),
    )
    state = json.loads(core.to_str())
    vocabulary = state["model"]["vocab"]
    names = [f"<unused {i}>" for i in range(len(vocabulary), size - len(special))] + list(special)
    vocabulary.update({name: i for i, name in enumerate(names, len(vocabulary))})
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        additional_special_tokens=list(special),
        **options,
    )


def _write_sites(folder, count):
    """COCO's, VQA's and the hub's data files and images, in their places; returns the texts in them."""
    captions, questions = shapes.load_shapes("train", count, progress=False)
    made = home() / f"shapes-v{shapes.VERSION}" / f"train-{count}-0" / "annotations"
    rng = np.random.default_rng(0)

    def place(kind, *ids):
        path = Path(locate(SOURCES[kind].address.format(*ids), str(folder)))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    said = []
    for row in captions:
        place("picture", row["image_id"]).write_bytes(_photograph(row["image"], rng))
        turns = [
            {"from": speaker, "value": value}
            for text in row["captions"]
            for speaker, value in (("human", "<image>\ndescribe the picture."), ("gpt", text))
        ]
        number = f"{row['image_id']:012d}"  # train2017's names
        said.append({"id": number, "image": f"{number}.jpg", "conversations": turns})
    for kind, name in (
        ("captions", "captions_shapes_train"),
        ("questions", "v2_OpenEnded_mscoco_shapes_train_questions"),
        ("annotations", "v2_mscoco_shapes_train_annotations"),
    ):
        data = read_json(made / f"{name}.json") | {"data_subtype": "train2014"}
        for image in data.get("images", ()):
            image["file_name"] = NAME.format(image["id"])
        with zipfile.ZipFile(place(kind), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(SOURCES[kind].member, json.dumps(data))
            if kind == "captions":
                archive.writestr(VAL_MEMBER, json.dumps({"images": [], "annotations": []}))
    write_json(place("instructions"), said, indent=None)
    return [text for texts in captions["captions"][:] for text in texts] + questions["question"][:]


def _photograph(picture, rng):
    """A drawn scene as a JPEG of COCO's size, with noise so that it has the bytes of a photograph too."""
    pixels = np.asarray(picture.resize(PICTURE_SIZE, PIL.Image.Resampling.NEAREST), np.int16)
    noisy = np.clip(pixels + rng.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noisy).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()
