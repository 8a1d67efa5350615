"""New tokens for points, answers as coordinates on an image, and three numbers of position.

Generated from notebooks/08b_places_and_time.py by `make notebooks`: edit the notebook.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite.data.tokenizer import COLUMNS, ROWS, plural
from vlm_lite.embed import pixel_values
from vlm_lite.lessons.instructions import read_boxes
from vlm_lite.lessons.language import pick, references, short_prompt
from vlm_lite.lessons.llava import set_trainable
from vlm_lite.lessons.vlm import train_vlm
from vlm_lite.lessons.world import BACKGROUND, CELL, COLOURS, GRID, IMAGE_SIZE, SHAPES


def mrope_positions(parts):
    """Text lengths and (frames, rows, columns) in order -> (3, T): time, row and column of every token."""
    found, start = [], 0
    for part in parts:
        if isinstance(part, int):
            numbers = torch.arange(part).expand(3, -1)
        else:
            numbers = torch.cartesian_prod(*map(torch.arange, part)).T
        found.append(start + numbers)
        start = int(found[-1].max()) + 1
    return torch.cat(found, dim=1)


LEVELS, FRAMES = 16, 3  # of x and of y; of a clip
AXES = {"frame": FRAMES, "x": LEVELS, "y": LEVELS}
NEW_WORDS = ["point", "<point>", *(f"<{axis}{k}>" for axis, n in AXES.items() for k in range(n))]
STEP = IMAGE_SIZE / LEVELS  # pixels a level


def say_points(points):
    """[(frame, x, y), ...] in pixels -> "<point> <frame0> <x3> <y5> ...", or "nothing". ValueError outside."""
    for frame, x, y in points:
        if frame not in range(FRAMES) or not (0 <= x < IMAGE_SIZE and 0 <= y < IMAGE_SIZE):
            limits = f"x and y are 0 to {IMAGE_SIZE} pixels, frames 0 to {FRAMES - 1}"
            raise ValueError(f"the point ({x}, {y}) in frame {frame} lies outside: {limits}")
    said = (f"<point> <frame{t}> <x{int(x / STEP)}> <y{int(y / STEP)}>" for t, x, y in points)
    return " ".join(said) or "nothing"


def centre(image, item):
    """The middle (x, y), in pixels, of what is drawn in an item's cell of an image, uint8 (3, 64, 64)."""
    top, left = CELL * item.row, CELL * item.col
    cell = image[:, top : top + CELL, left : left + CELL].int()
    drawn = (cell - torch.tensor(BACKGROUND).view(3, 1, 1)).abs().amax(dim=0) > 60
    y, x = ((each.min() + each.max() + 1).item() / 2 for each in drawn.nonzero().T)
    return left + x, top + y


def parse_points(text):
    """What a model says -> [(frame, x, y), ...], x and y in pixels; ValueError for a bad point."""
    found = re.findall(r"<point> ?<frame(\d+)> ?<x(\d+)> ?<y(\d+)>", text)
    if any(text.count(f"<{name}") != len(found) for name in ("point", *AXES)):
        raise ValueError(f"malformed point in {text!r}: expected <point> <frame0> <x3> <y5>")
    points = [tuple(map(int, each)) for each in found]
    if any(t >= FRAMES or max(x, y) >= LEVELS for t, x, y in points):
        limits = f"x and y are 0 to {LEVELS - 1}, frames 0 to {FRAMES - 1}"
        raise ValueError(f"point outside the image in {text!r}: {limits}")
    return [(t, STEP * (x + 0.5), STEP * (y + 0.5)) for t, x, y in points]


def add_words(model):
    """Give a VLM NEW_WORDS: their rows of the embedding learn, LoRA and the connector. -> the number of the first row."""
    language_model, tokenizer = model.language_model, model.tokenizer
    first, ids = len(tokenizer), tokenizer.convert_tokens_to_ids
    tokenizer.add_tokens(NEW_WORDS)
    language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = language_model.get_input_embeddings().weight
    with torch.no_grad():
        weight[first:] = weight[:first].mean(dim=0)
        for axis, words in {"x": COLUMNS, "y": ROWS}.items():
            known = weight[ids(list(words))].T[None]  # (1, D, 4)
            rows = ids([f"<{axis}{k}>" for k in range(LEVELS)])
            weight[rows] = F.interpolate(known, LEVELS, mode="linear")[0].T
        noise = torch.randn_like(weight[first:])
        weight[first:] += 0.3 * weight[:first].std(dim=0) * noise
    set_trainable(model, "LoRA")
    is_new = (torch.arange(len(weight)) >= first)[:, None]
    weight.requires_grad_().register_hook(lambda gradient: gradient * is_new.to(gradient.device))
    return first


def two_rates(model, lr):
    """AdamW without weight decay; for the embedding's rows at five times the learning rate."""
    learn = [each for each in model.parameters() if each.requires_grad]
    rows = model.language_model.get_input_embeddings().weight
    rest = [each for each in learn if each is not rows]
    groups = [{"params": rest}, {"params": [rows], "lr": 5 * lr}]
    return torch.optim.AdamW(groups, lr, weight_decay=0.0)


class Placed(nn.Module):
    """A connector, and beside each patch the rows of the words that say where it stands: features (B, F N, Dv) -> (B, F N, D)."""

    def __init__(self, connector, embedding, first, share=1 / 3):
        super().__init__()
        self.connector, self.first, self.share = connector, first, share
        self.embedding = [embedding]  # in a list: it is the language model's, not a part of this
        words, per = torch.zeros(FRAMES, GRID, GRID, len(NEW_WORDS)), LEVELS // GRID
        for t in range(FRAMES):
            words[t, :, :, NEW_WORDS.index(f"<frame{t}>")] = 1
        for k in range(LEVELS):
            words[:, :, k // per, NEW_WORDS.index(f"<x{k}>")] = 1 / per
            words[:, k // per, :, NEW_WORDS.index(f"<y{k}>")] = 1 / per
        self.register_buffer("words", words.flatten(0, 2))  # (FRAMES N, new words)

    def forward(self, features):
        frames, rest = divmod(features.shape[1], GRID**2)
        if not 1 <= frames <= FRAMES or rest:
            given = f"{features.shape[1]} patches are {frames} frames of {GRID**2}, and {rest} more"
            raise ValueError(f"{given}; give 1 to {FRAMES} whole frames")
        x, rows = self.connector(features), self.embedding[0].weight[self.first :]
        place = self.words[: features.shape[1]] @ rows  # (F N, D)
        lengths = [each.detach().norm(dim=-1).mean() for each in (x, place)]
        return x + self.share * lengths[0] / lengths[1] * place


def requests(image, description, rng):
    """{kind: [(prompt, answer, points), ...]} about an image: of "one" thing, of "each" of a kind, by a "number"."""
    scene = read_boxes(description)
    items = sorted(scene.items, key=lambda item: (item.row, item.col))  # in reading order
    at = {item: (0, *centre(image, item)) for item in items}
    one = [(name, [at[item]]) for item in items for name in references(scene, item)]
    found = {"one": [(f"point to {name}.", say_points(p), p) for name, p in one]}
    found |= {"each": [], "number": []}
    for key, words in {"colour": tuple(COLOURS), "shape": SHAPES}.items():
        here = {getattr(item, key) for item in scene.shapes}
        for word in sorted({*here, pick(rng, words)}):
            noun = plural(word, 2) if key == "shape" else f"{word} shapes"
            points = [at[item] for item in items if word == getattr(item, key)]
            found["each"].append((f"point to the {noun}.", say_points(points), points))
            found["number"].append((f"how many {noun} are there?", str(len(points)), points))
    return {kind: [(short_prompt(ask), *rest) for ask, *rest in v] for kind, v in found.items()}


def train_pointing(model, data, *, steps, share=1 / 3, seed=0, batch_size=16, lr=2e-3):
    """Teach a trained VLM to point on an EncodedDataset -> History. share: of the places in a patch's vector."""
    torch.manual_seed(seed)
    first, rng = add_words(model), np.random.default_rng(seed)
    embedding = model.language_model.get_input_embeddings()
    model.connector = Placed(model.connector, embedding, first, share)
    turns = []
    for image, text in zip(data.images, data.descriptions, strict=True):
        kinds = requests(image, text, rng)
        turns.append([row[:2] for row in kinds["one"] + kinds["each"] + kinds["number"][::2]])
    sizes = {"steps": steps, "batch_size": batch_size, "lr": lr, "per_row": 4, "seed": seed}
    return train_vlm(model, data.features, turns, make_optimizer=two_rates, **sizes)


def ask_points(model, features, prompts):
    """The points of B answers; none where an answer is malformed."""
    found = []
    for text in model.generate(features, prompts, max_new_tokens=22):
        try:
            found.append(parse_points(text))
        except ValueError:
            found.append([])
    return found


def gaps(found, truth):
    """Pixels from the first point of each answer to the first of the truth: array (B,), infinite where there is none."""
    pairs = zip(found, truth, strict=True)
    return np.array([np.hypot(*np.subtract(f[0], t[0])[1:]) if f else np.inf for f, t in pairs])


def all_right(found, truth, limit=8):
    """1.0 where an answer has as many points as the truth and each within `limit` pixels of its own, else 0.0."""
    right = []
    for f, t in zip(found, truth, strict=True):
        near = all(gaps([[a]], [[b]])[0] < limit for a, b in zip(f, t, strict=False))
        right.append(float(len(f) == len(t) and near))
    return np.array(right)


@torch.no_grad()
def follow(model, clips, pairs):
    """Point to two shapes in each frame of clips, uint8 (B, F, 3, 64, 64); pairs (B, 2): their numbers in SHAPES.

    -> x in pixels (B, F, 2), NaN where there is no point.
    """
    if not 1 <= clips.shape[1] <= FRAMES:
        raise ValueError(f"a clip of {clips.shape[1]} frames; give 1 to {FRAMES} of them")
    features, found = model.encode(pixel_values(clips.flatten(0, 1))), []
    for own in pairs.T:
        names = [SHAPES[k] for k in own.repeat_interleave(clips.shape[1])]
        points = ask_points(model, features, [short_prompt(f"point to the {n}.") for n in names])
        found.append([each[0][1] if each else np.nan for each in points])
    return torch.tensor(found).T.unflatten(0, clips.shape[:2])


def went_left(x):
    """x (B, F, shapes) on rings -> which of them went a cell to the left in each frame (B,), or -1 for none."""
    steps = (x.diff(dim=1) + IMAGE_SIZE / 2) % IMAGE_SIZE - IMAGE_SIZE / 2  # the shorter way round
    gap = (steps + CELL).abs().nan_to_num(8.0).mean(dim=1)  # a step not seen: 8 pixels
    return torch.where(gap.amin(dim=1) <= 6, gap.argmin(dim=1), -1)
