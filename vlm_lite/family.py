"""The family of vision-language models: twelve of them by the kind of fusion, and notebook 07's two figures."""

import io

import numpy as np
import pandas

from vlm_lite.diagrams import LEAF, SAND, WATER, Diagram
from vlm_lite.figures import BLUE, GREY, INK, ORANGE, PALE, Figure, styled

_MODELS = """
model|year|fusion|image encoder|text side|what is new|sizes|arXiv
CLIP|2021|late, score|ResNet or ViT, up to L/14|Transformer|contrastive loss on 400M pairs; zero-shot by prompts|151M (B/32) to 428M|2103.00020
ALIGN|2021|late, score|EfficientNet-L2|BERT-Large|1.8B alt texts, hardly filtered|480M + 340M|2102.05918
Flamingo|2022|deep|NFNet-F6, frozen|Chinchilla, frozen|resampler, gated cross-attention, examples in context|3B, 9B, 80B|2204.14198
OpenCLIP|2022|late, score|ViT, up to g/14|Transformer|code, weights and data (LAION) open; scaling laws|151M to 1.4B|2212.07143
BLIP-2|2023|late, input|CLIP L/14 or EVA-CLIP g/14, frozen|OPT or FlanT5, frozen|Q-Former, trained in two stages|3.1B to 12.1B|2301.12597
SigLIP|2023|late, score|ViT, up to So400m|Transformer|a sigmoid for each pair, no softmax over the batch|203M (B/16) to 878M|2303.15343
LLaVA|2023|late, input|CLIP L/14|Vicuna|one projection; instructions written by GPT-4|7B, 13B|2304.08485
CogVLM|2023|deep|EVA2-CLIP-E|Vicuna 1.5 7B|a visual expert in every layer|17B|2311.03079
Chameleon|2024|early|none: a VQ tokenizer, 8,192 codes, 1,024 tokens an image|one Transformer, from nothing|one vocabulary of 65,536; query-key norm|7B, 34B|2405.09818
Qwen2-VL|2024|late, input|ViT of 675M, 2D RoPE|Qwen2|naive dynamic resolution; M-RoPE|2B, 7B, 72B|2409.12191
Molmo|2024|late, input|CLIP L/14, 336 pixels|OLMo, OLMoE or Qwen2|open data (PixMo), described aloud by people; pointing|7B (1B active), 7B, 72B|2409.17146
SmolVLM2|2025|late, input|SigLIP B/16 or So400m|SmolLM2|pixel shuffle, 64 tokens a tile; video|256M, 500M, 2.2B|2504.05299
"""  # fmt: skip  # noqa: E501


def models():
    """Twelve models as a DataFrame: year, where image and text meet, the parts, what is new, parameters, the paper."""
    return pandas.read_csv(io.StringIO(_MODELS), sep="|", dtype=str).set_index("model")


@styled
def tree():
    """Four columns: where image and text meet in late (score, input), deep and early fusion, and who is built so."""
    table = models()
    figure = Diagram(920, 250, "late, deep and early fusion: where image and text meet")
    names = {"late, score": "late: two encoders, one score", "late, input": "late: at the input"}
    names |= {"deep": "deep: in the layers", "early": "early: one Transformer"}
    for k, (kind, name) in enumerate(names.items()):
        left, own = 10 + 230 * k, list(table.index[table.fusion == kind])
        figure.write(left + 105, 16, name, 9.5, fontweight="bold")
        lines = ", ".join(own[:3]) + (",\n" + ", ".join(own[3:]) if own[3:] else "")
        figure.write(left + 105, 228, lines)
        figure.write(left + 45, 196, "image", color=GREY)
        figure.write(left + 160, 196, "text", color=GREY)
        encoder = ("image\ntokenizer", LEAF) if kind == "early" else ("image\nencoder", SAND)
        figure.box(left + 5, 150, 80, 34, encoder[0], fill=encoder[1])
    boxes = [(125, 150, 80, 34, "text\nencoder", WATER), (65, 60, 90, 30, "cosine", LEAF)]
    boxes += [(245, 106, 80, 28, "connector", LEAF), (705, 44, 200, 60, "from nothing,\none vocabulary", WATER)]  # fmt: skip
    boxes += [(245, 44, 200, 46, "language model reads\nimage vectors, then text", WATER)]
    boxes += [(815, 150, 90, 34, "text\ntokenizer", LEAF)]
    for top in (44, 76, 108):
        boxes += [(570, top, 110, 26, "layer", WATER), (475, top, 80, 26, "for images", LEAF)]
    for left, top, width, height, text, fill in boxes:
        figure.box(left, top, width, height, text, fill=fill)
    ends = [(55, 148, 95, 92), (165, 148, 125, 92), (285, 149, 285, 135), (285, 105, 285, 92)]
    ends += [(400, 186, 400, 92), (515, 149, 515, 136), (630, 186, 630, 136)]
    ends += [(556, top + 13, 569, top + 13) for top in (44, 76, 108)]
    for a, b, c, d in [*ends, (750, 149, 750, 106), (860, 149, 860, 106)]:
        figure.arrow((a, b), (c, d))
    return figure


@styled
def rows(results, title):
    """{name: ProbeResult} as bars: blind, shuffled and VLM accuracy with intervals, and the oracle as a line."""
    figure = Figure(width=720, height=330, label=title, layout="constrained")
    axes, looks = figure.subplots(), {"blind": PALE, "shuffled": ORANGE, "vlm": BLUE}
    for k, (condition, colour) in enumerate(looks.items()):
        found = [each.percent()[condition] for each in results.values()]
        value, low, high = np.array(found).T
        places = np.arange(len(found)) + 0.27 * (k - 1)
        look = dict(color=colour, edgecolor=INK, capsize=3, hatch=("////", "\\\\\\\\", "")[k])
        axes.bar(places, value, 0.25, yerr=(value - low, high - value), label=condition, **look)
    oracle = next(iter(results.values())).percent()["oracle"][0]
    axes.axhline(oracle, ls=":", color=GREY, label="oracle")
    axes.set(xticks=range(len(results)), xticklabels=list(results), title=title, ylim=(0, 100))
    axes.set_ylabel("VQA accuracy (%)")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
