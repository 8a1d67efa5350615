"""Every check of the course: `from vlm_lite.labs import check`, then `info_nce = check.info_nce(info_nce)`."""

from .clip import class_embeddings, cosine_similarity, info_nce, information_bound, recall_at_k
from .qformer import make_labels, make_queries, multihead_attention, pad_batch, qformer_layer
from .vit import attention, attention_rollout, block_flops, patchify, pre_norm_block, resize_positions

__all__ = ["attention", "attention_rollout", "block_flops", "class_embeddings", "cosine_similarity", "info_nce",
           "information_bound", "make_labels", "make_queries", "multihead_attention", "pad_batch", "patchify",
           "pre_norm_block", "qformer_layer", "recall_at_k", "resize_positions"]
