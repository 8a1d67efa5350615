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
from .museum import accumulate, answer_loss, load_weights, mean_pool, position_ids, split_by_picture
from .qformer import (
    CrossAttention,
    QFormer,
    QFormerLayer,
    alone_as_together,
    build_batch,
    generate,
    same_as_blip2,
    same_as_transformers,
    vlm_training_step,
)
from .vit import Block, MultiHeadAttention, ViT, attention_rollout, patchify, vit_training_step

__all__ = [
    "Block",
    "CrossAttention",
    "ImageEncoder",
    "MultiHeadAttention",
    "QFormer",
    "QFormerLayer",
    "TextEncoder",
    "ViT",
    "accumulate",
    "alone_as_together",
    "answer_loss",
    "attention_rollout",
    "build_batch",
    "caption_recall",
    "chat_text",
    "circular_and_plain",
    "class_embeddings",
    "clipped_matches",
    "conversation_labels",
    "generate",
    "info_nce",
    "insert_image",
    "load_weights",
    "lora_linear",
    "mean_pool",
    "mlp_projector",
    "pair_accuracy",
    "paired_interval",
    "patchify",
    "pope_figures",
    "position_ids",
    "progress",
    "rarity",
    "recall_at_k",
    "same_as_blip2",
    "same_as_transformers",
    "same_outputs",
    "select_features",
    "split_by_picture",
    "stage1_mask",
    "training_step",
    "type_prior",
    "vit_training_step",
    "vlm_training_step",
    "vqa_accuracy",
]
