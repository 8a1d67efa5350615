"""Nothing yet; the loop that asks a finished vision-language model with its image, another, or none.

Generated from notebooks/00_start_here.py by `make notebooks`: edit the notebook.
"""

import torch


@torch.no_grad()
def ask_conditions(vlm, features, blank, own, other, prompts, told, *, batch_size=256,
                   max_new_tokens=4):  # fmt: skip
    """Q prompts -> {condition: Q answers}, greedy.

    features (N, T, D): those of N images; own, other: the numbers of each prompt's image and of another one, Q of each;
    blank (T, D): an empty image's features; told: Q prompts with the scene in words in front, or none.
    """

    def ask(prompts, numbers, features=features):
        asked = list(dict.fromkeys(zip(prompts, numbers, strict=True)))  # the same is asked once
        answers = {}
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            texts, images = zip(*batch, strict=True)
            seen = None if images[0] is None else features[list(images)].float()  # (B, T, D)
            said = vlm.generate(seen, list(texts), max_new_tokens=max_new_tokens)
            answers |= zip(batch, said, strict=True)
        return [answers[each] for each in zip(prompts, numbers, strict=True)]

    no_image, empty = [None] * len(prompts), [0] * len(prompts)
    answers = {"vlm": ask(prompts, own), "blind": ask(prompts, no_image)}
    answers |= {"shuffled": ask(prompts, other), "blank": ask(prompts, empty, blank[None])}
    return answers | ({"oracle": ask(told, no_image)} if told else {})
