"""The stages of notebook 04 with OpenAI's CLIP and a chat model, on COCO.

Generated from notebooks/04t_photographs.py by `make notebooks`: edit the notebook.
"""

from vlm_lite.lessons import llava
from vlm_lite.lessons.coco import photo_texts


def photo_talks(photos, prompt):
    """What notebook 04's stages train on: {data: N lists of conversations}, "mixed" being all of it."""
    said = photo_texts(photos, prompt)
    found = {
        "captions": [[[pair] for pair in row] for row in said["captions"]],
        "conversation": said["instructions"],
        "VQA": [[[pair] for pair in row] for row in said["vqa"]],
    }
    return found | {"mixed": [sum(each, []) for each in zip(*found.values(), strict=True)]}


def photo_plan(steps, batch_size=16):
    """Notebook 04's `plan`, as LLaVA's authors have it for pretrained models: AdamW throughout, at their rates."""
    rates = {"connector": 1e-3, "LoRA": 2e-4}
    return {
        name: stage | {"optimizer": "AdamW", "lr": rates[stage["trainable"]]}
        for name, stage in llava.plan(steps, batch_size).items()
    }
