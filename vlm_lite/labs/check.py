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
from .core import progress, same_outputs
from .evaluation import (
    bleu,
    circular_and_vanilla,
    clustered_interval,
    pope_metrics,
    rouge_l,
    vqa_accuracy,
)
from .llava import (
    chat_text,
    conversation_labels,
    insert_image,
    lora_linear,
    mlp_projector,
    select_features,
)
from .museum import accumulate, answer_loss, load_weights, mean_pool, position_ids, split_by_picture
from .qformer import make_labels, make_queries, multihead_attention, pad_batch, qformer_layer
from .vit import Block, MultiHeadAttention, ViT, attention_rollout, patchify, vit_training_step

__all__ = [
    "Block",
    "ImageEncoder",
    "MultiHeadAttention",
    "TextEncoder",
    "ViT",
    "accumulate",
    "answer_loss",
    "attention_rollout",
    "bleu",
    "chat_text",
    "circular_and_vanilla",
    "class_embeddings",
    "clustered_interval",
    "conversation_labels",
    "info_nce",
    "insert_image",
    "load_weights",
    "lora_linear",
    "make_labels",
    "make_queries",
    "mean_pool",
    "mlp_projector",
    "multihead_attention",
    "pad_batch",
    "patchify",
    "pope_metrics",
    "position_ids",
    "progress",
    "qformer_layer",
    "recall_at_k",
    "rouge_l",
    "same_outputs",
    "select_features",
    "split_by_picture",
    "stage1_mask",
    "training_step",
    "vit_training_step",
    "vqa_accuracy",
]
