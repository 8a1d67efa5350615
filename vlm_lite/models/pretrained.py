"""Finished VLMs of transformers, such as SmolVLM2, behind one call: `answer(images, texts)`."""

import torch

from vlm_lite.data.images import to_rgb
from vlm_lite.files import UserError


class PretrainedVLM:
    """A chat model of transformers (`AutoModelForImageTextToText` with its processor), asked greedily and in batches.

    name: hub id or folder. longest_edge: images are scaled to it before they are cut into tiles; None keeps the
    processor's own. On a GPU the weights are fp16 where it has no native bf16 (a T4), else bf16; on a CPU fp32.
    """

    def __init__(self, name, *, longest_edge=None, compute=None):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from vlm_lite.profiles import get_compute

        allow_smolvlm()

        compute = compute or get_compute()
        half = (
            {"bf16": torch.bfloat16, "fp16": torch.float16}[compute.mixed_precision]
            if compute.device != "cpu"
            else torch.float32
        )
        try:
            self.processor = AutoProcessor.from_pretrained(name)
            self.model = (
                AutoModelForImageTextToText.from_pretrained(name, dtype=half)
                .to(compute.device)
                .eval()
            )
        except (
            OSError,
            ImportError,
            ValueError,
        ) as error:  # not there, a package it needs, another kind of model
            raise UserError(
                f"{name} cannot be loaded ({str(error).strip().splitlines()[0]}). Expected a folder, or "
                "the id of an image-text-to-text model and a network."
            ) from error
        self.processor.tokenizer.padding_side = (
            "left"  # so that every answer begins where its row ends
        )
        self.longest_edge = longest_edge

    @torch.no_grad()
    def answer(self, images, texts, max_new_tokens=16):
        """B images (PIL), or None to ask blind, and B texts -> B answers. Rows are padded on the left."""
        if not texts or (images is not None and len(images) != len(texts)):
            raise UserError(
                f"{None if images is None else len(images)} images for {len(texts)} texts; expected one "
                "each, and at least one."
            )
        content = [
            [{"type": "image"}] * (images is not None) + [{"type": "text", "text": text}]
            for text in texts
        ]
        prompts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": each}], add_generation_prompt=True
            )
            for each in content
        ]
        seen = {} if images is None else {"images": [[to_rgb(image)] for image in images]}
        if seen and self.longest_edge is not None:
            seen["size"] = {"longest_edge": self.longest_edge}
        inputs = self.processor(text=prompts, padding=True, return_tensors="pt", **seen).to(
            self.model.device
        )
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        rows = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = rows[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]


def allow_smolvlm():
    """Let SmolVLM's processor start without the package num2words, which only spells out the frames of a video."""
    from transformers.models.smolvlm import processing_smolvlm

    processing_smolvlm.num2words = processing_smolvlm.num2words or str
