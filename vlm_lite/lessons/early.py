"""An image tokenizer with a codebook, and one transformer that reads and draws images.

Generated from notebooks/07b_early_fusion.py by `make notebooks`: edit the notebook.
"""

import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.embed import embed_images, embed_strings
from vlm_lite.encoded import encode_shapes
from vlm_lite.evals.probes import run_probes
from vlm_lite.lessons.clip import recall_at_k
from vlm_lite.lessons.modern import Llama, generate
from vlm_lite.lessons.world import BACKGROUND
from vlm_lite.models import text
from vlm_lite.models.clip import CLIP
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute, resolve_model


class VectorQuantizer(nn.Module):
    """Vectors z (..., N, d) -> the nearest of K codes (..., N, d), the loss (), their numbers (..., N)."""

    def __init__(self, num_codes, width, codebook=1.0, commitment=0.25):
        super().__init__()
        self.embedding, self.weights = nn.Embedding(num_codes, width), (codebook, commitment)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        self.register_buffer("used", torch.zeros(num_codes))  # how often, since the last restart

    def forward(self, z):
        flat = z.flatten(0, -2)
        codes = torch.cdist(flat, self.embedding.weight).argmin(dim=1)
        nearest = self.embedding(codes).view(z.shape)
        codebook, commitment = F.mse_loss(nearest, z.detach()), F.mse_loss(z, nearest.detach())
        loss = self.weights[0] * codebook + self.weights[1] * commitment
        out = z + (nearest - z).detach()
        if self.training:
            self.used += torch.bincount(codes, minlength=len(self.used))
            self.seen, self.missed = flat.detach(), (z - nearest).detach().norm(dim=-1).flatten()
        return out, loss, codes.view(z.shape[:-1])

    @torch.no_grad()
    def restart(self):  # move what nothing has chosen since the last call to vectors just seen
        dead = (self.used == 0).nonzero()[:, 0]
        rows = torch.multinomial(self.missed**2 + 1e-9, max(1, len(dead)), replacement=True)
        self.embedding.weight[dead] = self.seen[rows[: len(dead)]]
        self.used.zero_()
        return {"dead codes": len(dead)}


def cut(images):  # uint8 (B, 3, 64, 64) -> cells (16 B, 3, 16, 16), row after row
    return rearrange(images, "b c (h p) (w q) -> (b h w) c p q", p=16, q=16)


class ImageTokenizer(nn.Module):
    # uint8 cells (M, 3, 16, 16) -> a code each, and back, by an MLP each way

    def __init__(self, num_codes=512, width=32, hidden=256, pixels=768):
        super().__init__()
        first, last = nn.Linear(pixels, hidden), nn.Linear(hidden, pixels)
        self.encoder = nn.Sequential(first, nn.GELU(), nn.Linear(hidden, width))
        self.quantizer = VectorQuantizer(num_codes, width)
        self.decoder = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)

    def quantize(self, cells):  # (M, 3, 16, 16) -> vectors (M, d), loss (), codes (M,)
        return self.quantizer(self.encoder(cells.flatten(1) / 64 - 1).float())

    def forward(self, cells):  # -> the loss (): that of the pixels, and the quantizer's
        z, loss, _ = self.quantize(cells)
        return F.mse_loss(self.decoder(z).float(), cells.flatten(1) / 64 - 1) + loss

    @torch.no_grad()
    def encode(self, images):  # uint8 (B, 3, 64, 64) -> codes (B, 16), cell after cell
        codes = [self.quantize(cut(part))[2] for part in images.split(500)]
        return torch.cat(codes).view(len(images), 16)

    @torch.no_grad()
    def decode(self, codes):  # (B, 16) -> uint8 images (B, 3, 64, 64)
        z = self.quantizer.embedding(codes).flatten(0, 1)  # (B 16, d)
        pixels = (64 * (self.decoder(z) + 1)).round().clamp(0, 255).to(torch.uint8)
        return rearrange(pixels, "(b h w) (c p q) -> b c (h p) (w q)", h=4, w=4, p=16, q=16)


def is_object(cells):  # uint8 (M, 3, 16, 16) -> bools (M,); the ground has a deviation of 7
    return torch.cat([part.float().flatten(1).std(dim=1) > 20 for part in cells.split(8000)])


def choose_cells(images):  # -> the cells that show something, and one empty cell for six of them
    some = is_object(cells := cut(images))
    return torch.cat([cells[some], cells[~some][: max(1, int(some.sum()) // 6)]])


def train_early(name, model, draw_batch, *, steps, lr=1e-2, seed=0, look=None):
    # Train a model that returns its loss on batches of draw_batch(), tuples of tensors -> History
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = MuonAdamW(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    code, sizes = (type(model), train_early), {"lr": lr, "look": bool(look)}
    run = Checkpoint(name, prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    for step in run.steps(steps):
        loss = prepared(*(part.to(accelerator.device) for part in draw_batch()))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss)
        if look and (step + 1) % 10 == 0 and step < 0.8 * steps:
            run.log(**look(model))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    model.eval().cpu()
    return run.history


def train_tokenizer(cells, *, seed=0, restart=True, **recipe):
    # An ImageTokenizer trained on uint8 cells (M, 3, 16, 16), 128 a step
    torch.manual_seed(seed)
    model, look = ImageTokenizer(), (lambda model: model.quantizer.restart()) if restart else None
    draw_batch = lambda: (cells[torch.randint(len(cells), (128,))],)  # noqa: E731
    train_early("image tokenizer", model, draw_batch, seed=seed, look=look, **recipe)
    return model


def codebook_report(model, images):
    # {metric: value} on held-out images: error where objects are, codes in use, and their perplexity there
    codes = model.encode(images)
    some = is_object(right := cut(images))
    right, found = right[some].float(), cut(model.decode(codes))[some].float()
    p = codes.flatten()[some].bincount() / some.sum()
    error, perplexity = F.mse_loss(found, right) / right.var(), torch.special.entr(p).sum().exp()
    names = "error where objects are", "codes in use", "perplexity"
    return dict(zip(names, map(float, (error, (p > 0).sum(), perplexity)), strict=True))


class Vocabulary:
    # Words of a tokenizer, then num_codes image codes, then the two marks around an image

    def __init__(self, tokenizer, num_codes=512):
        self.tokenizer, self.first = tokenizer, len(tokenizer)
        self.begin, self.end = self.first + num_codes, self.first + num_codes + 1
        self.size = self.end + 1

    def image(self, codes):  # (N,) -> the ids of an image between its marks, a list
        return [self.begin, *(self.first + codes).tolist(), self.end]

    def reading(self, codes, turns):
        # (N,) or None, and (prompt, answer) turns -> ids, labels, whose: 0 image, 1, 2, ... turns
        ids = [] if codes is None else self.image(codes)
        labels, whose = [text.IGNORE] * len(ids), [0] * len(ids)
        for number, turn in enumerate(turns, start=1):
            said, wanted = text.conversation(self.tokenizer, [turn])
            ids, labels, whose = ids + said, labels + wanted, whose + [number] * len(said)
        return ids, labels, whose

    def drawing(self, codes, caption):  # -> ids, labels, whose: the image is to be written
        words, image = text.tokenize(self.tokenizer, [caption])[0], self.image(codes)
        labels = [text.IGNORE] * (len(words) + 1) + image[1:]  # the mark that begins is given
        return words + image, labels, [0] * len(labels)


def pad_rows(rows):  # (ids, labels, whose) each -> ids (B, T), mask (B, T, T), labels (B, T)
    columns = [[torch.tensor(each) for each in column] for column in zip(*rows, strict=True)]
    ids, labels = pad_sequence(columns[0], True), pad_sequence(columns[1], True, text.IGNORE)
    whose = pad_sequence(columns[2], True, -1)
    mask = (whose[:, :, None] == whose[:, None, :]) | (whose[:, None, :] == 0)
    return ids, mask.tril(), labels


def mixed_batch(vocabulary, codes, data, batch_size=16, per_row=8, blind=0.1):
    # A third drawing, the others reading, of an EncodedDataset and its images' codes (N, 16) -> ids, mask, labels
    rows = []
    for place, k in enumerate(random.sample(range(len(codes)), batch_size)):
        turns = data.turns[k][1:] or data.turns[k]  # questions; without any, the caption
        turns = random.sample(turns, min(per_row, len(turns)))
        seen = None if random.random() < blind else codes[k]
        drawing = vocabulary.drawing(codes[k], data.captions[k][0])
        rows.append(vocabulary.reading(seen, turns) if place % 3 else drawing)
    return pad_rows(rows)


class HeadNorm(nn.Module):
    # x (..., H h) -> the same, each head's h numbers normalised, with a scale and a shift for each

    def __init__(self, heads, head_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(heads, head_dim))

    def forward(self, x):
        x = x.unflatten(-1, self.weight.shape)  # (..., H, h)
        return (F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias).flatten(-2)


def llama(vocab_size, width=128, layers=4, heads=4, inner=384, qk_norm=True):
    # 09's Llama of these sizes, with Chameleon's query-key norm or without
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads}
    sizes |= {"num_hidden_layers": layers, "rms_norm_eps": 1e-5, "vocab_size": vocab_size}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    model = Llama(LlamaConfig(**sizes, rope_parameters=rope))
    for attention in (layer.self_attn for layer in model.layers if qk_norm):
        attention.q_proj = nn.Sequential(attention.q_proj, HeadNorm(heads, width // heads))
        attention.k_proj = nn.Sequential(attention.k_proj, HeadNorm(heads, width // heads))
    return model


class EarlyFusion(nn.Module):
    # One transformer for words and image codes: the loss of mixed rows, answers, and images

    def __init__(self, vocabulary, **sizes):
        super().__init__()
        self.vocabulary, self.text_model = vocabulary, llama(vocabulary.size, **sizes)

    def embed(self, ids, images=None):  # (B, T) -> (B, T, D); images are ids as well
        return self.text_model.embed_tokens(ids)

    def forward(self, ids, mask, labels):  # (B, T), (B, T, T), (B, T) -> loss ()
        logits, wanted = self.text_model(self.embed(ids), mask)[0].float(), labels[:, 1:]
        losses = F.cross_entropy(logits[:, :-1].mT, wanted, reduction="none")  # (B, T - 1)
        counted = (wanted != text.IGNORE).sum(dim=1)
        return (losses.sum(dim=1) / counted).mean()  # each row counts once

    def left_padded(self, rows):  # lists of ids -> ids and mask (B, T)
        length = max(map(len, rows))
        ids = torch.tensor([[-1] * (length - len(row)) + row for row in rows])
        return ids.clamp(min=0), (ids >= 0).long()

    def generate(self, codes, prompts, max_new_tokens=4):
        # codes (B, 16), or None, and B prompts -> B answers in words
        words, rows = self.vocabulary.tokenizer, text.tokenize(self.vocabulary.tokenizer, prompts)
        if codes is not None:
            images = map(self.vocabulary.image, codes.long())
            rows = [image + row for image, row in zip(images, rows, strict=True)]
        found = generate(self, *self.left_padded(rows), None, max_new_tokens, words.eos_token_id)
        found = found.masked_fill(found >= self.vocabulary.first, words.eos_token_id)  # no words
        return text.decode(words, list(found.T), len(prompts))

    @torch.no_grad()
    def draw(self, captions, seed=0):
        # B captions -> codes (B, 16), drawn at random from the model's probabilities of codes
        vocabulary, rng = self.vocabulary, torch.Generator().manual_seed(seed)
        rows = text.tokenize(vocabulary.tokenizer, captions)
        ids, mask = self.left_padded([row + [vocabulary.begin] for row in rows])
        cache, drawn = None, []
        for _ in range(16):
            logits, cache = self.text_model(self.embed(ids), mask, cache)
            p = logits[:, -1, vocabulary.first : vocabulary.begin].float().softmax(dim=-1)
            drawn.append(torch.multinomial(p, 1, generator=rng))  # (B, 1)
            ids, mask = vocabulary.first + drawn[-1], F.pad(mask, (0, 1), value=1)
        return torch.cat(drawn, dim=1)


@torch.no_grad()
def start_from(codebook, model):
    # Set the rows of the image codes, where they enter and where they leave, to projections of codebook (K, d)
    vocabulary, codebook = model.vocabulary, (codebook - codebook.mean(dim=0)) / codebook.std()
    for weight in (model.text_model.embed_tokens.weight, model.text_model.lm_head.weight):
        projection = torch.randn(codebook.shape[1], weight.shape[1]) / codebook.shape[1] ** 0.5
        weight[vocabulary.first : vocabulary.begin] = weight.std() * (codebook @ projection)


def train_fusion(image_tokenizer, data, *, qk_norm=True, seed=0, **recipe):
    # An EarlyFusion trained on an EncodedDataset, its images read by an ImageTokenizer -> (model, History)
    torch.manual_seed(seed)
    codes = image_tokenizer.encode(data.images)
    model = EarlyFusion(Vocabulary(make_tokenizer()), qk_norm=qk_norm)
    start_from(image_tokenizer.quantizer.embedding.weight, model)
    draw_batch = lambda: mixed_batch(model.vocabulary, codes, data)  # noqa: E731
    return model, train_early("early fusion", model, draw_batch, seed=seed, **recipe)


def measure(model, image_tokenizer, clip, val):
    # -> ProbeResult of 384 questions, 128 drawings, {what is shown: R@5 of its caption among 128}
    count, codes = min(128, len(val.images)), image_tokenizer.encode(val.images)
    rows = val.questions.select(range(3 * count))
    blank = torch.tensor(BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    blank = image_tokenizer.encode(blank)
    result = run_probes(model, codes, rows, blank_features=blank, image_ids=val.ids)
    captions = [five[0] for five in val.captions[:count]]
    texts = embed_strings(clip, captions, model.vocabulary.tokenizer)
    drawn = image_tokenizer.decode(model.draw(captions))
    shown = {"drawing": drawn, "for another caption": drawn.roll(1, 0), "image": val.images[:count]}
    shown["tokenizer's copy"] = image_tokenizer.decode(codes[:count])
    found = {what: recall_at_k(embed_images(clip, x) @ texts.T, 5) for what, x in shown.items()}
    return result, drawn, found


@torch.no_grad()
def logit_bound(model):
    # {name: the largest |q| |k| / sqrt(h) of any head} on a row of all ids: no attention logit is above it
    norms, h = [], model.text_model.head_dim
    keep = lambda _, __, out: norms.append(out.unflatten(-1, (-1, h)).norm(dim=-1).amax((0, 1)))  # noqa: E731
    parts = [getattr(x.self_attn, n) for x in model.text_model.layers for n in ("q_proj", "k_proj")]
    hooks = [part.register_forward_hook(keep) for part in parts]
    model.text_model(model.embed(torch.arange(model.vocabulary.size)[None]))
    [hook.remove() for hook in hooks]
    bounds = torch.stack(norms[::2]) * torch.stack(norms[1::2]) / h**0.5  # (layers, H)
    return {"logit bound": bounds.max().item()}


def study(seed, profile):
    """Notebook 07b: an image tokenizer with and without restarts, a longer training, and query-key norm."""
    clip, steps = CLIP.from_pretrained(resolve_model("shapes-clip")), profile.connector_steps
    train = encode_shapes(clip, "train", profile.train_images)
    val, figures = encode_shapes(clip, "val", profile.val_images), {}
    for name, restart in (("no restart", False), ("restart", True)):
        recipe = {"steps": 2 * steps, "seed": seed, "restart": restart}
        made = train_tokenizer(choose_cells(train.images), **recipe)
        figures |= {f"{name}: {k}": v for k, v in codebook_report(made, val.images).items()}
    model, history = train_fusion(made, train, steps=6 * steps, seed=seed)
    result, _, found = measure(model, made, clip, val)
    figures |= {f"VQA: {name}": each.value for name, each in result.accuracy.items()}
    figures |= {f"R@5: {what}": each for what, each in found.items()}
    recipe = {"steps": steps // 2, "lr": 4e-2, "seed": seed}
    for name, norm in (("norm", True), ("no norm", False)):
        high, losses = train_fusion(made, train, qk_norm=norm, **recipe)
        figures[f"{name}: loss"] = losses.losses[-1]
        figures |= {f"{name}: {k}": v for k, v in logit_bound(high).items()}
    return history, figures
