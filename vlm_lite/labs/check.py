"""Every check of the course: `from vlm_lite.labs import check`, then `info_nce = check.info_nce(info_nce)`."""

from .blip2 import stage1_mask
from .clip import (
    ImageEncoder,
    TextEncoder,
    class_embeddings,
    info_nce,
    recall_at_k,
    training_step,
)
from .controls import circular_and_plain, pair_accuracy, paired_interval, pope_figures, type_prior
from .core import progress, same_outputs
from .evaluation import caption_recall, clipped_matches, rarity, vqa_accuracy
from .llava import (
    chat_text,
    conversation_labels,
    insert_image,
    lora_linear,
    mlp_projector,
    select_features,
)
from .museum import load_weights, position_ids, split_by_image
from .qformer import make_labels, make_queries, multihead_attention, pad_batch, qformer_layer
from .vit import Block, MultiHeadAttention, ViT, attention_rollout, patchify, vit_training_step

__all__ = [
    "Block",
    "ImageEncoder",
    "MultiHeadAttention",
    "TextEncoder",
    "ViT",
    "attention_rollout",
    "caption_recall",
    "chat_text",
    "circular_and_plain",
    "class_embeddings",
    "clipped_matches",
    "conversation_labels",
    "info_nce",
    "insert_image",
    "load_weights",
    "lora_linear",
    "make_labels",
    "make_queries",
    "mlp_projector",
    "multihead_attention",
    "pad_batch",
    "pair_accuracy",
    "paired_interval",
    "patchify",
    "pope_figures",
    "position_ids",
    "progress",
    "qformer_layer",
    "rarity",
    "recall_at_k",
    "same_outputs",
    "select_features",
    "split_by_image",
    "stage1_mask",
    "training_step",
    "type_prior",
    "vit_training_step",
    "vqa_accuracy",
]
