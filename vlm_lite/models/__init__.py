"""ViT, CLIP, Q-Former, projectors and the assembled vision-language model."""
