"""The training of a connector between a frozen vision encoder and a frozen language model, and what it is measured by."""

import copy

import torch

from vlm_lite.data.formats import image_tensor
from vlm_lite.data.language import CAPTION_PROMPT, chat_prompt, sentence, short_prompt
from vlm_lite.embed import CLIP_MEAN, CLIP_STD, embed_images
from vlm_lite.embed import embed_strings as embed_texts
from vlm_lite.encoded import EncodedDataset
from vlm_lite.encoded import patch_features as picture_features
from vlm_lite.encoded import probe as encoded_probe
from vlm_lite.evals.retrieval import recall_at_k
from vlm_lite.files import UserError
from vlm_lite.models.clip import CLIP
from vlm_lite.models.projectors import make_connector
from vlm_lite.models.text import IGNORE, build_text_batch, load_language_model
from vlm_lite.models.vlm import VLM
from vlm_lite.profiles import get_compute, resolve_model
from vlm_lite.train import train

SHAPES_QFORMER = dict(
    num_query_tokens=8,
    width=192,
    num_layers=3,
    num_heads=6,
    mlp_width=768,
    cross_attention_frequency=1,
)


def pixel_values(images, mean=CLIP_MEAN, std=CLIP_STD):
    """uint8 pictures (B, 3, H, W) in 0..255 -> floats, normalised with CLIP's own mean and std (not ImageNet's)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"pixel_values got {torch.typename(images)}, {images.dtype}, shape {tuple(images.shape)}; "
            "expected torch.Tensor, uint8, (B, 3, H, W). From floats in 0..1: (images * 255).round().byte()"
            "; from NumPy: torch.from_numpy(images); from channels last: images.permute(0, 3, 1, 2)."
        )
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (mean, std))
    return (images / 255 - mean) / std


def clip_recall(model, images, texts, tokenizer, ks=(1, 5, 10)):
    """Recall@K both ways over N images and their N texts, identical strings counting as hits."""
    u, v = embed_images(model, images), embed_texts(model, texts, tokenizer)
    return recall_at_k(u, v, torch.arange(len(texts)), ks, texts=texts)


def new_vlm(
    connector="qformer",
    *,
    seed=0,
    vision_model="shapes-clip",
    language_model="shapes-gpt2",
    **settings,
):
    """A VLM with an untrained connector between two trained models, given by zoo name or hub id."""
    vision = CLIP.from_pretrained(resolve_model(vision_model))
    language_model, tokenizer = load_language_model(resolve_model(language_model))
    torch.manual_seed(seed)
    nerve = make_connector(
        connector,
        vision.feature_width,
        language_model.config.hidden_size,
        **{**(SHAPES_QFORMER if connector == "qformer" else {}), **settings},
    )
    return VLM(
        vision=vision, connector=nerve, language_model=language_model, tokenizer=tokenizer
    ).eval()


def check_answer(image_id, question, answer):
    """UserError for a question of a table that has no answer to train on."""
    if not (answer or "").strip():
        raise UserError(
            f"the question {question!r} about image {image_id} has no answer. Give it one (the column "
            "`answer`), or leave it out of the training."
        )


def picture_exchanges(captions, questions, *, captions_each=1, chat=False):
    """What is said about each picture: {image_id: [(prompt, answer), ...]}, its captions first, then its questions.

    With `chat`, every third question is put as an instruction, answered in a sentence.
    """
    said = {
        row_id: [(CAPTION_PROMPT, text) for text in texts[:captions_each]]
        for row_id, texts in zip(captions["image_id"][:], captions["captions"][:], strict=True)
    }
    columns = (questions[name][:] for name in ("image_id", "question", "answer", "question_type"))
    for number, (image_id, question, answer, kind) in enumerate(zip(*columns, strict=True)):
        pair = short_prompt(question), answer
        check_answer(image_id, question, answer)
        if chat and number % 3 == 0:
            pair = chat_prompt(question), sentence(question, answer, kind)
        said.setdefault(image_id, []).append(pair)
    return said


def exchange_batches(features, exchanges, tokenizer, batch_size, per_row=6):
    """Batches for a connector: `batch_size` pictures, each with up to `per_row` exchanges in one row, in random order.

    Several questions about one picture share its prefix, as LLaVA-1.5 merges them into one conversation
    (Liu et al. 2023, "Improved baselines", section 3.4). features (N, T, D); exchanges: for each picture a list of
    pairs, or of conversations (lists of pairs), whose turns do read one another. UserError when they are not as many.
    """
    if len(features) != len(exchanges):
        raise UserError(
            f"{len(features)} pictures, and exchanges about {len(exchanges)}; expected as many, in the "
            "same order. A picture of which nothing is said has an empty list."
        )
    text = build_text_batch(
        tokenizer,
        [[pair] if isinstance(pair[0], str) else pair for row in exchanges for pair in row],
    )
    lengths = text["attention_mask"].sum(1).tolist()
    ids = [row[:n] for row, n in zip(text["input_ids"], lengths, strict=True)]
    labels = [row[:n] for row, n in zip(text["labels"], lengths, strict=True)]
    counts = torch.tensor([len(row) for row in exchanges])
    first = (counts.cumsum(0) - counts).tolist()
    usable = counts.nonzero()[:, 0]
    if not 1 <= batch_size <= len(usable):
        raise UserError(
            f"batch_size is {batch_size}; expected 1 to {len(usable)}, the number of pictures with text."
        )

    def batches(step, generator):
        rows = usable[torch.randperm(len(usable), generator=generator)[:batch_size]]
        chosen = [
            [
                first[r] + k
                for k in torch.randperm(int(counts[r]), generator=generator)[:per_row].tolist()
            ]
            for r in rows.tolist()
        ]
        longest = 16 * -(-max(sum(len(ids[k]) for k in row) for row in chosen) // 16)
        batch_ids = torch.zeros(batch_size, longest, dtype=torch.long)
        batch_labels = torch.full((batch_size, longest), IGNORE)
        mask = torch.zeros(batch_size, longest, dtype=torch.long)
        for i, row in enumerate(chosen):
            length = sum(len(ids[k]) for k in row)
            batch_ids[i, :length] = torch.cat([ids[k] for k in row])
            batch_labels[i, :length] = torch.cat([labels[k] for k in row])
            mask[i, :length] = torch.cat(
                [torch.full((len(ids[k]),), n) for n, k in enumerate(row, 1)]
            )
        return features[rows], batch_ids, mask, batch_labels

    return batches


def train_connector(
    vlm, features, exchanges, *, steps, batch_size=64, lr=1e-2, per_row=6, **options
):
    """Train the connector of a VLM through its frozen language model; the loss is on answer tokens only. A History.

    features (N, T, D) from `picture_features`; exchanges: N lists of (prompt, answer). Recipe: Muon for the matrices
    and AdamW for the rest (`optim.MuonAdamW`), lr 1e-2, one cosine with warm-up. The frozen language model runs in the
    half precision of the device, if it has one: what does not learn needs no fp32 weights. `options` go to
    `train.train`.
    """
    compute = options.pop("compute", None) or get_compute()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        compute.mixed_precision, torch.float32
    )
    whole, vlm.language_model = vlm.language_model, copy.deepcopy(vlm.language_model).to(half)
    vlm.train()
    options = {"description": "connector", "optimizer": "muon", **options}
    try:
        return train(
            vlm,
            exchange_batches(features, exchanges, vlm.tokenizer, batch_size, per_row),
            lambda model, batch: model(*batch).loss,
            steps=steps,
            lr=lr,
            compute=compute,
            settings={"batch_size": batch_size, "per_row": per_row, "images": len(features)},
            **options,
        )
    finally:
        vlm.language_model = whole.to(vlm.device)
        vlm.eval()


def probe(vlm, captions, questions, *, limit=1000, **options):
    """`encoded.probe` of a table of captions and one of questions: blind, shuffled, blank and oracle beside the VLM."""
    images, texts, ids = load_pictures(captions)
    features = picture_features(vlm.vision, images, progress=False)
    data = EncodedDataset(ids, images, features, texts, [], questions)
    return encoded_probe(vlm, data, limit, **options)


def load_pictures(captions):
    """(uint8 (N, 3, H, W), list of N caption lists, list of N image ids) of a captions table."""
    images, ids = image_tensor(captions)
    return images, captions["captions"][:], ids
