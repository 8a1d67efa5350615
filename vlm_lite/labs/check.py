"""Every check of the course: `from vlm_lite.labs import check`, then `info_nce = check.info_nce(info_nce)`."""

from vlm_lite.labs.clip import (
    ImageEncoder,
    TextEncoder,
    class_embeddings,
    info_nce,
    recall_at_k,
    training_step,
)
from vlm_lite.labs.core import progress, same_outputs
from vlm_lite.labs.evaluation import (
    bleu,
    circular_and_vanilla,
    clustered_interval,
    pope_metrics,
    rouge_l,
    vqa_accuracy,
)
from vlm_lite.labs.llava import (
    chat_text,
    conversation_labels,
    insert_image,
    lora_linear,
    mlp_projector,
)
from vlm_lite.labs.museum import load_weights, position_ids, split_by_image
from vlm_lite.labs.qformer import (
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
from vlm_lite.labs.vit import (
    Block,
    MultiHeadAttention,
    ViT,
    attention_rollout,
    patchify,
    vit_training_step,
)

__all__ = [
    "Block",
    "CrossAttention",
    "ImageEncoder",
    "MultiHeadAttention",
    "QFormer",
    "QFormerLayer",
    "TextEncoder",
    "ViT",
    "alone_as_together",
    "attention_rollout",
    "bleu",
    "build_batch",
    "chat_text",
    "circular_and_vanilla",
    "class_embeddings",
    "clustered_interval",
    "conversation_labels",
    "generate",
    "info_nce",
    "insert_image",
    "load_weights",
    "lora_linear",
    "mlp_projector",
    "patchify",
    "pope_metrics",
    "position_ids",
    "progress",
    "recall_at_k",
    "rouge_l",
    "same_as_blip2",
    "same_as_transformers",
    "same_outputs",
    "split_by_image",
    "training_step",
    "vit_training_step",
    "vlm_training_step",
    "vqa_accuracy",
]
