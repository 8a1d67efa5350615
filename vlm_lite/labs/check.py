"""Every check of the course: `from vlm_lite.labs import check`, then `info_nce = check.info_nce(info_nce)`."""

from .clip import class_embeddings, cosine_similarity, info_nce, information_bound, recall_at_k
from .core import progress
from .qformer import make_labels, make_queries, multihead_attention, pad_batch, qformer_layer

__all__ = ["class_embeddings", "cosine_similarity", "info_nce", "information_bound", "make_labels", "make_queries",
           "multihead_attention", "pad_batch", "progress", "qformer_layer", "recall_at_k"]
