"""BLIP-2's first stage: the queries learn what is worth seeing from captions, before they ever meet a language model.

Li et al. 2023, "BLIP-2" (section 3.2). Queries and caption pass through the *same* self-attention, in one sequence; a
mask says who may look at whom, and three masks make three tasks:

    itc   queries | text apart       a caption's vector is near the best of its picture's queries (contrastive)
    itm   everybody sees everybody   do this picture and this caption belong together? (matching)
    itg   text sees queries + past   say the caption, knowing the picture only through the queries (generation)

Only the queries look at the picture. The text has its own MLP in each layer and its own embeddings; all of that is
left behind after this stage, and the Q-Former goes on to the language model.

Shapes: B pictures, N patches of width Dv, Q queries of width D, L text positions, V words, P width of the joint space.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite.models.qformer import LAYER_NORM_EPS, check_features, init_linear

MASKS = ("itc", "itm", "itg")


def stage1_mask(task, num_queries, text_mask):
    """Who may look at whom: bools (B, Q+L, Q+L), True where the row's position may read the column's.

    task: "itc", "itm" or "itg" (see the head of this module). text_mask (B, L): 1 for words, 0 for padding, which
    nobody reads. Source: BLIP-2, figure 2 on the right. ValueError for another task.
    """
    if task not in MASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(MASKS)}.")
    length = text_mask.shape[1]
    sees = torch.ones(
        num_queries + length, num_queries + length, dtype=torch.bool, device=text_mask.device
    )
    if task != "itm":
        sees[:num_queries, num_queries:] = (
            False  # queries do not read the text, or it would give itself away
        )
    if task == "itc":
        sees[num_queries:, :num_queries] = False
    if task == "itg":
        sees[num_queries:, num_queries:] = torch.ones(length, length, dtype=torch.bool).tril()
    real = F.pad(text_mask.bool(), (num_queries, 0), value=True)  # (B, Q+L)
    return sees & real[:, None, :]


class QFormerStage1(nn.Module):
    """A Q-Former connector with what the first stage adds: text embeddings, a text MLP a layer, and three heads.

    connector: a `QFormerConnector`; it is trained in place. vocab_size: of the tokenizer; the two tokens that begin a
    text, [CLS] for matching and contrast and [DEC] for generation, are added behind its words.
    """

    def __init__(self, connector, *, vocab_size, max_text_length=64, projection_dim=128):
        super().__init__()
        width = connector.settings["width"]
        mlp_width = connector.settings["mlp_width"] or 4 * width
        self.connector = connector
        self.cls_token_id, self.dec_token_id = vocab_size, vocab_size + 1
        self.word_embedding = nn.Embedding(vocab_size + 2, width)
        self.position_embedding = nn.Embedding(max_text_length, width)
        self.text_mlps = nn.ModuleList(
            nn.ModuleDict(
                {
                    "mlp_in": nn.Linear(width, mlp_width),
                    "mlp_out": nn.Linear(mlp_width, width),
                    "mlp_norm": nn.LayerNorm(width, eps=LAYER_NORM_EPS),
                }
            )
            for _ in connector.qformer.layers
        )
        self.image_projection = nn.Linear(width, projection_dim)
        self.text_projection = nn.Linear(width, projection_dim)
        self.itm_head = nn.Linear(width, 2)
        self.itg_transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.itg_bias = nn.Parameter(torch.zeros(vocab_size + 2))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        for part in (
            self.text_mlps,
            self.image_projection,
            self.text_projection,
            self.itm_head,
            self.itg_transform,
        ):
            part.apply(init_linear)
        for embedding in (self.word_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)

    def joint(self, image_embeds, input_ids, see):
        """One pass of queries and text together -> (queries (B, Q, D), text (B, L, D)).

        image_embeds (B, N, Dv), already through the connector's `vision_norm`; input_ids (B, L); see (B, Q+L, Q+L).
        """
        qformer = self.connector.qformer
        num_queries, length = len(qformer.query_tokens), input_ids.shape[1]
        if length > self.position_embedding.num_embeddings:
            raise ValueError(
                f"a text has {length} tokens, more than max_text_length "
                f"{self.position_embedding.num_embeddings}. Shorten it or make max_text_length larger."
            )
        words = (
            self.word_embedding(input_ids) + self.position_embedding.weight[:length]
        )  # (B, L, D)
        queries = qformer.query_tokens.expand(len(input_ids), -1, -1)
        both = qformer.dropout(
            qformer.input_norm(torch.cat([queries, words], dim=1))
        )  # (B, Q+L, D)
        for layer, text_mlp in zip(qformer.layers, self.text_mlps, strict=True):
            both = layer.self_norm(
                both + layer.dropout(layer.self_attention(both, both, mask=see)[0])
            )
            queries, text = both[:, :num_queries], both[:, num_queries:]
            queries, _ = layer.look_and_think(queries, image_embeds)
            thought = text_mlp["mlp_out"](F.gelu(text_mlp["mlp_in"](text)))
            both = torch.cat([queries, text_mlp["mlp_norm"](text + layer.dropout(thought))], dim=1)
        return both[:, :num_queries], both[:, num_queries:]

    def forward(self, features, input_ids, mask):
        """The three losses of a batch of pictures and their captions: {"itc", "itm", "itg"}, scalars.

        features (B, N, Dv); input_ids and mask (B, L): a caption and its EOS. ValueError for a batch of one, which
        has nothing to contrast.
        """
        if len(features) < 2:
            raise ValueError(
                "a batch of one picture has no other to tell it from. Give two or more."
            )
        check_features(features, self.connector.vision_width)
        image_embeds = self.connector.vision_norm(features.float())
        num_queries = len(self.connector.qformer.query_tokens)
        # A text begins with [CLS] or [DEC]; its last token, EOS or padding, is only ever a target.
        start = torch.full_like(input_ids[:, :1], self.cls_token_id)
        cls_ids = torch.cat([start, input_ids], dim=1)
        cls_mask = F.pad(mask, (1, 0), value=1)
        queries, text = self.joint(image_embeds, cls_ids, stage1_mask("itc", num_queries, cls_mask))
        similarity = self.similarity(queries, text[:, 0])  # (B, B)
        target = torch.arange(len(features), device=features.device)
        itc = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2

        dec_ids = torch.cat([torch.full_like(start, self.dec_token_id), input_ids[:, :-1]], dim=1)
        _, text = self.joint(image_embeds, dec_ids, stage1_mask("itg", num_queries, mask))
        real = mask.bool()
        logits = F.linear(self.itg_transform(text[real]), self.word_embedding.weight, self.itg_bias)
        itg = F.cross_entropy(logits.float(), input_ids[real])

        same = (input_ids[:, None] == input_ids[None]).all(
            dim=-1
        )  # the picture itself, and equal captions
        picture, caption = hard_negatives(similarity.detach(), same)
        rows = torch.cat([target, picture, target])  # pictures: the own, a hard wrong one, the own
        texts = torch.cat([target, target, caption])  # captions: the own, the own, a hard wrong one
        queries, _ = self.joint(
            image_embeds[rows], cls_ids[texts], stage1_mask("itm", num_queries, cls_mask[texts])
        )
        logits = self.itm_head(queries).mean(dim=1)  # (3B, 2): the mean over the queries
        itm = F.cross_entropy(
            logits.float(), (torch.arange(len(rows), device=rows.device) < len(features)).long()
        )
        return {"itc": itc, "itm": itm, "itg": itg}

    def similarity(self, queries, text):
        """queries (B, Q, D), text (C, D) -> (B, C): cosine of the best query of each picture, times the scale."""
        image_embeds = F.normalize(self.image_projection(queries).float(), dim=-1)  # (B, Q, P)
        text_embeds = F.normalize(self.text_projection(text).float(), dim=-1)  # (C, P)
        return (
            torch.einsum("bqp,cp->bcq", image_embeds, text_embeds).amax(dim=-1)
            * self.logit_scale.exp()
        )


def hard_negatives(similarity, same):
    """For each caption a wrong picture, for each picture a wrong caption, the more often the more alike: (B,), (B,).

    similarity (B, B), pictures by captions; same (B, B): True where the two belong together. Source: BLIP-2's code
    (and ALBEF, Li et al. 2021, section 3.2). A row without any wrong one draws evenly.
    """

    def draw(scores):
        weights = scores.float().softmax(dim=-1).masked_fill(same, 0) + 1e-4 * ~same
        return torch.multinomial(torch.where(weights.sum(-1, keepdim=True) > 0, weights, 1.0), 1)[
            :, 0
        ]

    return draw(similarity.T), draw(similarity)
