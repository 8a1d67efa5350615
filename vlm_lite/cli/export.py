"""A trained VLM as ONNX files that any language can run, checked with onnxruntime against PyTorch.

    vision.onnx     pixels (1, 3, S, S) -> prefix (1, Q, D)
    language.onnx   prefix (1, Q, D), input_ids (1, T), past -> logits (1, V) of the next token, present

past and present are the KV cache, (layers, 2, 1, heads, positions, D / heads). Blind is Q = 0; after the first call
only the new token is given. Weights that fp16 holds exactly are stored in it and cast as the model is loaded.
"""

import hashlib
import json
import warnings

import numpy as np
import torch
from torch import nn

from vlm_lite.embed import CLIP_MEAN, CLIP_STD, pixel_values
from vlm_lite.files import UserError, atomic_dir, write_json
from vlm_lite.lessons.language import short_prompt
from vlm_lite.models.text import special_ids

TOLERANCE = 1e-4
AXES = {"prefix": {1: "Q"}, "input_ids": {1: "T"}, "past": {4: "P"}, "present": {4: "P_Q_T"}}


class Vision(nn.Module):
    """Vision encoder and connector: pixels (1, 3, S, S) -> prefix (1, Q, D)."""

    def __init__(self, vlm):
        super().__init__()
        self.vision, self.connector = vlm.vision, vlm.connector

    def forward(self, pixels):
        return self.connector(self.vision.patch_features(pixels))


class Language(nn.Module):
    """One pass of the language model: [past][prefix][text] -> logits (1, V) of the next token, and the longer cache."""

    def __init__(self, vlm):
        super().__init__()
        self.model = vlm.language_model

    def forward(self, prefix, input_ids, past):
        from transformers import DynamicCache

        embeds = torch.cat([prefix, self.model.get_input_embeddings()(input_ids)], dim=1)
        known, new = past.shape[4], embeds.shape[1]
        row = torch.arange(new, device=past.device)[:, None] + known
        hidden = torch.arange(known + new, device=past.device)[None] > row  # (Q + T, P + Q + T)
        mask = hidden.float()[None, None] * torch.finfo(torch.float32).min
        cache = DynamicCache()
        for layer in range(past.shape[0]):
            cache.update(past[layer, 0], past[layer, 1], layer)
        output = self.model(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache,
                            position_ids=row.T, use_cache=True)  # fmt: skip
        present = torch.stack([torch.stack([each.keys, each.values]) for each in cache.layers])
        return output.logits[:, -1], present


def export(vlm, out, images, questions):
    """Write `out`, a folder, whole or not at all -> {"error": largest difference, "equal": answers, "bytes"}.

    images (N, 3, S, S) uint8 and their N questions are what ONNX and PyTorch must answer alike. UserError for missing
    packages, a tokenizer that is no list of words, and a check that fails.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"export needs {error.name}: pip install 'vlm-lite[export]'.") from error
    tokenizer, config = vlm.tokenizer, vlm.language_model.config
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "WordLevel":
        raise UserError(
            f"the callers know tokenizers of whole words (WordLevel), and this one is {model['type']}. "
            "Export a VLM with the course's tokenizer, such as shapes-vlm."
        )
    with atomic_dir(out) as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # what tracing says of shapes: the lengths are checked below
        pixels = pixel_values(images)
        vision, language = Vision(vlm).eval(), Language(vlm).eval()
        prefix, ids = vision(pixels[:1]), torch.arange(5)[None]
        past = torch.randn(config.n_layer, 2, 1, config.n_head, 3, config.n_embd // config.n_head)
        longer = past.repeat(1, 1, 1, 1, 7, 1)
        parts = {  # module, inputs, outputs, what is traced, and other lengths: blind, with a longer cache
            "vision": (vision, ["pixels"], ["prefix"], (pixels[:1],), (pixels[-1:],)),
            "language": (language, ["prefix", "input_ids", "past"], ["logits", "present"],
                         (prefix, ids, past), (prefix[:, :0], ids[:, :2], longer)),
        }  # fmt: skip
        manifest = {
            "prompt": short_prompt("{question}"),
            "eos": special_ids(tokenizer)[0],
            "unknown": tokenizer.unk_token_id,
            "max_new_tokens": 16,
            "context": config.max_position_embeddings,
            "image_size": images.shape[-1],
            "mean": CLIP_MEAN,
            "std": CLIP_STD,
            "past": list(past[..., :0, :].shape),
            "files": {},
        }
        error, sessions = 0.0, {}
        for name, (part, inputs, outputs, traced, other) in parts.items():
            path, axes = folder / f"{name}.onnx", AXES if name == "language" else None
            torch.onnx.export(part, traced, str(path), input_names=inputs, output_names=outputs,
                              dynamic_axes=axes, opset_version=17, dynamo=False)  # fmt: skip
            path.write_bytes(_in_half(onnx.load(path)).SerializeToString())
            sessions[name] = onnxruntime.InferenceSession(path)
            for example in (traced, other):
                given = {k: x.numpy() for k, x in zip(inputs, example, strict=True)}
                expected = part(*example)
                expected = expected if isinstance(expected, tuple) else (expected,)
                for ours, theirs in zip(sessions[name].run(None, given), expected, strict=True):
                    error = max(error, float(np.abs(ours - theirs.numpy()).max()))
        expected = vlm.generate(vlm.encode(pixels), [short_prompt(text) for text in questions])
        asked = zip(pixels.numpy(), questions, expected, strict=True)
        equal = sum(answer(sessions, manifest, tokenizer, x, q) == said for x, q, said in asked)
        if error > TOLERANCE or equal < len(questions):
            raise UserError(
                f"ONNX and PyTorch differ by {error:.1e} (at most {TOLERANCE:.0e} is expected) and answer "
                f"{len(questions) - equal} of {len(questions)} questions differently: nothing was kept."
            )
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        (folder / "vocabulary.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest["files"][path.name] = found
        write_json(folder / "manifest.json", manifest)
    size = sum(each["bytes"] for each in manifest["files"].values())
    return {"error": error, "equal": equal, "bytes": size}


def answer(sessions, manifest, tokenizer, pixels, question):
    """The greedy answer of the two ONNX sessions to one question about pixels (3, S, S), as any caller finds it."""
    (prefix,) = sessions["vision"].run(None, {"pixels": pixels[None]})
    prompt = manifest["prompt"].format(question=question)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    past, new = np.zeros(manifest["past"], np.float32), []
    for _ in range(manifest["max_new_tokens"]):
        inputs = {"prefix": prefix, "input_ids": np.array([ids], np.int64), "past": past}
        logits, past = sessions["language"].run(None, inputs)
        ids = [int(logits[0].argmax())]
        if ids[0] == manifest["eos"]:
            break
        new, prefix = new + ids, prefix[:, :0]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def _in_half(model):
    """Store in fp16, with a cast in front of its use, every fp32 weight that fp16 holds exactly."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        value = numpy_helper.to_array(weight)
        half = value.astype(np.float16) if value.dtype == np.float32 and value.size > 64 else None
        if half is not None and np.array_equal(half.astype(np.float32), value):
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model
