"""vlm_lite: small, tested helpers for a course that builds vision-language models from scratch."""

__version__ = "0.1.0.dev0"
