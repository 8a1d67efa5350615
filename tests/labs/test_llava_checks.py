"""Notebook 04's checks: right answers in another style pass, and each known mistake is called by its name.

An attempt is the check's own reference with an edit (what stands there, what instead).
"""

from vlm_lite.labs import check

MLP = "F.linear(F.gelu(F.linear(features, w1, b1)), w2, b2)"
BEFORE, AFTER = "token_embeds[:place]", "token_embeds[place + 1 :]"
ROW = f"torch.cat([{BEFORE}, image_embeds, {AFTER}])"
MASKED, RETURN = "[IGNORE] * len(prompt)", "return ids, labels"
FROZEN, SCALE, LOW = "x @ weight + bias", "alpha / len(a)", "(x @ a.T @ b.T)"
RIGHT = {
    check.mlp_projector: [(MLP, "F.gelu(features @ w1.T + b1) @ w2.T + b2")],
    check.insert_image: [("torch.cat", "torch.vstack")],
    check.chat_text: [(".strip()", ".removesuffix(' ')")],
    check.conversation_labels: [(RETURN, "return torch.tensor(ids), torch.tensor(labels)")],
    check.lora_linear: [
        (f"{FROZEN} + {SCALE} * {LOW}", f"F.linear(x, weight.T + {SCALE} * b @ a, bias)")
    ],
}
WRONG = {
    check.mlp_projector: {
        "two linear maps are one": ("F.gelu(", "("),
        "ReLU": ("gelu", "relu"),
        "tanh": ("w1, b1))", "w1, b1), approximate='tanh')"),
        "after the second layer": (MLP, f"F.gelu({MLP})"),
        "biases are missing": ("w1, b1))", "w1))", "), w2, b2)", "), w2)"),
        "turned round": (MLP, "F.gelu(F.linear(features, w1, b1)) @ w2 + b2"),
        "not Linear, GELU, Linear": ("gelu", "silu"),
    },
    check.insert_image: {
        "*replaced*": (AFTER, "token_embeds[place:]"),
        "is *replaced*": (BEFORE, "token_embeds[: place + 1]"),
        "in front of everything": (f"{BEFORE}, image_embeds", f"image_embeds, {BEFORE}"),
        "behind everything": (f"image_embeds, {AFTER}", f"{AFTER}, image_embeds"),
        "is lost": (f", {AFTER}", ""),
        "are lost": ("place + 1 :", "place + 4 :"),
        "averaged into one": ("], image_embeds", "], image_embeds.mean(0, keepdim=True)"),
        "shape": (ROW, "image_embeds"),
    },
    check.chat_text: {
        "the text ends there": ("(text + ASSISTANT if", "(text if"),
        "the conversation is over": ("else text)", "else text + ASSISTANT)"),
        "has no EOS": (" {eos}", ""),
        "in the middle has no EOS": ("(text +", "(text.replace(f'{eos} {USER}', USER) +"),
        "after a user's turn": ("{USER} {m['content']}", "{USER} {m['content']} {eos}"),
        "earlier turns are gone": ("in messages\n", "in messages[-1:]\n"),
        "who speaks": ("{USER}", "user:", "{ASSISTANT}", "assistant:", "+ ASSISTANT", "+ 'it:'"),
        "the spaces are not": (".strip()", ""),
        "under 'content'": ("    return", "    return str(messages)\n    return"),
    },
    check.conversation_labels: {
        "only the last answer": ("labels +=", "labels = [IGNORE] * len(labels)\n        labels +="),
        "ask the user's questions": (MASKED, "prompt"),
        "never told to stop": ("+ [eos]\n    return", "+ [IGNORE]\n    return"),
        "shifted": (RETURN, f"{RETURN}[1:] + [IGNORE]"),
        "turned round": (f"{MASKED} + answer + [eos]", "prompt + [IGNORE] * (len(answer) + 1)"),
        "label -100": ("[IGNORE] *", "[0] *"),
        "one each": (RETURN, f"{RETURN}[:-1]"),
        "all prompts come first": (
            *("ids, labels = [], []", "ids, labels = [i for turn in turns for i in turn[0]], []"),
            *("ids += prompt +", "ids +="),
        ),
        "after each *answer*": ("ids += prompt + answer", "ids += prompt + [eos] + answer"),
        "the EOS is not where": (
            *("answer + [eos]\n        labels", "answer\n        labels"),
            *("    return", "    ids += [eos]\n    return"),
        ),
        "two lists": (RETURN, "return ids"),
    },
    check.lora_linear: {
        "the frozen layer alone": (SCALE, "0"),
        "LoRA's part alone": (f"{FROZEN} +", ""),
        "not scaled": (SCALE, "1"),
        "alpha alone": (SCALE, "alpha"),
        "it is alpha / r": (SCALE, "len(a) / alpha"),
        "instead of the rank": ("len(a)", "6"),
        "bias is missing": (" + bias", ""),
        "frozen layer too": (f"{FROZEN} + {SCALE} * {LOW}", f"{SCALE} * ({FROZEN} + {LOW})"),
        "is not x W": ("len(a)", "len(a) ** 2"),
    },
}
