"""Every check of the course: `from vlm_lite.labs import check`, then `info_nce = check.info_nce(info_nce)`."""

from .blip2 import stage1_mask
from .clip import class_embeddings, cosine_similarity, info_nce, information_bound, recall_at_k
from .core import progress
from .museum import accumulate, answer_loss, load_weights, mean_pool, position_ids, split_by_picture
from .qformer import make_labels, make_queries, multihead_attention, pad_batch, qformer_layer
from .vit import attention, attention_rollout, block_flops, patchify, pre_norm_block, resize_positions

__all__ = ["accumulate", "answer_loss", "attention", "attention_rollout", "block_flops", "class_embeddings",
           "cosine_similarity", "info_nce", "information_bound", "load_weights", "make_labels", "make_queries",
           "mean_pool", "multihead_attention", "pad_batch", "patchify", "position_ids", "pre_norm_block", "progress",
           "qformer_layer", "recall_at_k", "resize_positions", "split_by_picture", "stage1_mask"]
