"""The checks of notebook 07b, and its proofs: quantizer and transformer are Chameleon's, with the same weights."""

import torch
from einops import rearrange
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEVectorQuantizer

from vlm_lite.labs.core import exercise, random_weights, same_values
from vlm_lite.labs.fusion import _judge_module
from vlm_lite.lessons import early as lesson

SIZES = {"num_embeddings": 12, "embed_dim": 4}
NAMES = {"model.": "", "input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
NAMES |= {f"{p}_proj.weight": f"{p}_proj.0.weight" for p in "qk"}
NAMES |= {f"{p}_norm.": f"{p}_proj.1." for p in "qk"}


def same_quantizer(VectorQuantizer):
    """Prove vectors, loss and codes equal to Chameleon's. It has the weights of the two terms of the loss exchanged."""
    theirs = random_weights(ChameleonVQVAEVectorQuantizer(ChameleonVQVAEConfig(**SIZES)))
    mine = VectorQuantizer(12, 4, codebook=0.25, commitment=1.0).eval()
    mine.embedding.load_state_dict(theirs.embedding.state_dict())
    z = torch.randn(2, 3, 3, 4)
    with torch.no_grad():
        (found, loss, codes), right = mine(z), theirs(rearrange(z, "b h w d -> b d h w"))
    assert torch.equal(codes.flatten(), right[2]), "other codes than Chameleon's"
    same_values("codes ", found, rearrange(right[0], "b d h w -> b h w d"))
    same_values("loss ", loss, right[1])


def same_transformer(llama):
    """Prove the logits of llama(vocab_size, width, layers, heads, inner) equal to those of a small Chameleon."""
    images = ChameleonVQVAEConfig(
        base_channels=32, latent_channels=4, channel_multiplier=[1], **SIZES
    )
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocabulary_map": {"<image>": 4}}
    config = ChameleonConfig(**sizes, **heads, vq_config=images.to_dict())
    theirs, mine = ChameleonForConditionalGeneration(config), llama(40, 32, 2, 4, 48)
    state = {k: v for k, v in random_weights(theirs).state_dict().items() if "vqmodel" not in k}
    for old, new in NAMES.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    mine.load_state_dict(state)
    ids = torch.randint(40, (2, 9))
    with torch.no_grad():
        right = theirs.lm_head(theirs.model(ids).last_hidden_state)  # before image codes are barred
        same_values("logits ", mine(mine.embed_tokens(ids))[0], right)


@exercise(lesson.VectorQuantizer)
def VectorQuantizer(learner):
    """Six vectors, five codes, random weights: what is chosen, the loss, and the gradients of vectors and codes."""
    start, weights, total = torch.randn(2, 3, 4), torch.randn(2, 3, 4), "self.weights[0] * codebook"
    mistakes = {
        "no gradient passes straight through: z + (nearest - z).detach()": (
            *("z + (nearest - z).detach()", "nearest"),
        ),
        "the codebook's term moves the encoder, too: z.detach() there": ("(nearest, z.detach())", "(nearest, z)"),
        "the commitment's term moves the codes, too: nearest.detach() there": ("(z, nearest.detach())", "(z, nearest)"),
        "the weights of the two terms are exchanged": (
            *(total, "self.weights[1] * codebook", "+ self.weights[1] * commitment", "+ self.weights[0] * commitment"),
        ),
    }  # fmt: skip

    def call(part):
        with torch.enable_grad():
            z = start.clone().requires_grad_()
            found, loss, codes = part(z)
            back = (loss + (weights * found).sum(), (z, part.embedding.weight))
            grads = torch.autograd.grad(*back, allow_unused=True, materialize_grads=True)
        return torch.cat([each.detach().flatten() for each in (found, loss, codes, *grads)])

    return _judge_module(learner, lesson.VectorQuantizer, (5, 4, 1.0, 0.25), call, mistakes)


@exercise(lesson.HeadNorm)
def HeadNorm(learner):
    """Two heads of four numbers, random scale and shift: each head by itself."""
    x = 3 * torch.randn(2, 5, 8) + 1
    mistakes = {
        "the heads are normalised together; each has its own mean and deviation": (
            *("x.shape[-1:])", "x.shape[-2:])"),
        ),
        "the scale is missing": (" * self.weight", ""),
        "the shift is missing": (" + self.bias", ""),
    }
    return _judge_module(learner, lesson.HeadNorm, (2, 4), lambda part: part(x.clone()), mistakes)
