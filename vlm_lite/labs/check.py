"""Every check of the course: `from vlm_lite.labs import check`, then `info_nce = check.info_nce(info_nce)`."""

from vlm_lite.labs.clip import (
    ImageEncoder,
    TextEncoder,
    class_embeddings,
    info_nce,
    recall_at_k,
    training_step,
)
from vlm_lite.labs.core import progress, random_weights, same_outputs, same_values
from vlm_lite.labs.early import HeadNorm, VectorQuantizer
from vlm_lite.labs.evaluation import (
    bleu,
    circular_and_vanilla,
    clustered_interval,
    pope_metrics,
    rouge_l,
    vqa_accuracy,
)
from vlm_lite.labs.fusion import (
    GatedCrossAttention,
    MediaAttention,
    PerceiverAttention,
    PerceiverResampler,
    VisualExpert,
    last_image_mask,
    same_as_idefics,
)
from vlm_lite.labs.llava import (
    chat_text,
    conversation_labels,
    insert_image,
    lora_linear,
    mlp_projector,
)
from vlm_lite.labs.modern import (
    GroupedQueryAttention,
    RMSNorm,
    SwiGLU,
    apply_rope,
    cached_generate,
    insert_images,
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
from vlm_lite.labs.resolution import (
    interpolate_positions,
    pack,
    packed_attention,
    pixel_shuffle,
    qwen2_vl_rotary,
    rope_2d,
    select_best_resolution,
)
from vlm_lite.labs.vit import (
    Block,
    MultiHeadAttention,
    ViT,
    attention_rollout,
    patchify,
    vit_training_step,
)
