"""Every check of the course: `from vlm_lite.labs import check`, then `info_nce = check.info_nce(info_nce)`."""

from .clip import class_embeddings, cosine_similarity, info_nce, information_bound, recall_at_k
from .core import progress
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

__all__ = ["accumulate", "answer_loss", "chat_text", "class_embeddings", "conversation_labels", "cosine_similarity",
           "info_nce", "information_bound", "insert_image", "load_weights", "lora_linear", "make_labels",
           "make_queries", "mean_pool", "mlp_projector", "multihead_attention", "pad_batch", "position_ids", "progress",
           "qformer_layer", "recall_at_k", "select_features", "split_by_picture"]
