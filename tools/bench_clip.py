"""The rows of `make bench` about CLIP and ViT: our towers beside the libraries', and a race to R@5 0.90 on Shapes.

The race is between the recipe that people start from, which is PLAIN, and ours, `recipes.train_clip`, which is PLAIN
and all REMEDIES. Both take turns of a few steps, see the same batches, and are evaluated alike between the turns; what
counts is the seconds of their steps. Each remedy is then measured alone.
"""

import copy
import math
import statistics
import sys
import tempfile
from unittest import mock

import torch
import torch.nn.functional as F
from vlm_lite.models.vit_weights import load_vit

from tools.timing import half_precision, in_turn, line, now, seconds
from vlm_lite import recipes
from vlm_lite.data.language import make_tokenizer
from vlm_lite.data.shapes import load_shapes
from vlm_lite.models.clip import CLIP, info_nce
from vlm_lite.profiles import TINY
from vlm_lite.train import learning_rate, step_seed, weight_decay_groups

PLAIN = frozenset()  # transformers' CLIPModel with its own initial weights and loss, fp32, text padded to the context,
#                      torch's AdamW as it comes, lr 1e-3 from the first step to the last
REMEDIES = {
    "bf16": "half-precision autocast",
    "attention": "attention in fp32 within it",
    "short": "text as long as its batch",
    "fused": "fused AdamW",
    "towers": "our towers (which cut off padding themselves)",
    "schedule": "warm-up and cosine",
    "limits": "decay of matrices alone, gradients and temperature limited",
    "start": "our initial weights, the places of the patches far apart",
}
STEPS = "schedule", "limits", "start"  # the remedies that change how many steps it takes
GOAL, LR, HOPE = (
    0.90,
    1e-3,
    2.0,
)  # HOPE: with a larger loss R@5 is far from the goal, and is not asked for


# ---------------------------------------------------------------- our towers beside the libraries'


def attention_in_fp32(on=True):
    """Within the block attention runs in fp32 under autocast, as our `attend` has it on a CPU.

    There torch's bf16 `scaled_dot_product_attention` has a gradient many times slower than its fp32 one, and timm and
    transformers meet it.
    """
    attend = F.scaled_dot_product_attention

    def in_fp32(query, key, value, attn_mask=None, **options):
        if query.dtype == torch.float32 or query.device.type != "cpu":
            return attend(query, key, value, attn_mask=attn_mask, **options)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        with torch.autocast("cpu", enabled=False):
            mixed = attend(
                query.float(), key.float(), value.float(), attn_mask=attn_mask, **options
            )
        return mixed.to(value.dtype)

    return mock.patch.object(F, "scaled_dot_product_attention", in_fp32 if on else attend)


class LinearPatches(torch.nn.Module):
    """A patch embedding's convolution, whose stride is its kernel, run as one linear map of every patch."""

    def __init__(self, convolution):
        super().__init__()
        self.weight, self.size = convolution.weight, convolution.kernel_size[0]

    def forward(self, pixels):
        """pixels (B, C, S, S) -> (B, D, S/p, S/p), as the convolution gives it."""
        patches = F.unfold(pixels, self.size, stride=self.size).transpose(1, 2)  # (B, N, C p p)
        side = pixels.shape[-1] // self.size
        return F.linear(patches, self.weight.flatten(1)).transpose(1, 2).unflatten(2, (side, side))


def time_towers(compute, rounds=9, quick=False):
    """Our ViT beside timm's and our CLIP beside transformers', at the same weights, sizes, batch, precision and loss.

    Forward and backward, in training mode, all by `scaled_dot_product_attention`. The two take turns, so that what
    else runs on the machine meets both; the ratio is the median of those of the rounds.
    """
    import timm
    from transformers import CLIPModel

    name, rounds = ("vit_tiny_patch16_224", 1) if quick else ("vit_small_patch16_224", rounds)
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10)
    ours = load_vit(name, theirs.state_dict())
    pixels, classes = torch.randn(2 if quick else 8, 3, 224, 224), torch.arange(2 if quick else 8)
    compare(
        f"{name}, batch {len(pixels)}: ours / timm's",
        {
            "ours": (ours, lambda x, y: F.cross_entropy(ours(x).logits, y)),
            "theirs": (theirs, lambda x, y: F.cross_entropy(theirs(x), y)),
        },
        (pixels, classes),
        compute,
        rounds,
    )

    tokenizer = make_tokenizer()
    captions, _ = load_shapes("train", 64, progress=False)
    images, texts, _ = recipes.load_pictures(captions)
    size = 16 if quick else TINY.clip_batch_size
    copies = -(-size // len(images))
    batch = recipes.caption_batches(
        images.repeat(copies, 1, 1, 1), texts * copies, tokenizer, size
    )(0, torch.Generator().manual_seed(0))
    longest = int(batch[2].sum(1).max())
    batch = (
        batch[0],
        batch[1][:, :longest],
        batch[2][:, :longest],
    )  # our text tower runs no more, so theirs shall not
    mine = recipes.make_shapes_clip(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        mine.save_pretrained(folder)
        reference = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
    linear = copy.deepcopy(reference)
    parts = linear.vision_model.embeddings
    parts.patch_embedding = LinearPatches(parts.patch_embedding)

    def their_loss(model):
        def loss(x, ids, mask):
            found = model(input_ids=ids, pixel_values=x, attention_mask=mask)
            return info_nce(found.image_embeds, found.text_embeds, model.logit_scale)

        return loss

    def my_loss(x, ids, mask):
        found = mine(x, ids, mask)
        return info_nce(found.image_embeds, found.text_embeds, mine.logit_scale)

    compare(
        f"CLIP of Shapes, batch {size}: ours / transformers'",
        {
            "ours": (mine, my_loss),
            "theirs": (reference, their_loss(reference)),
            "linear": (linear, their_loss(linear)),
        },
        (recipes.pixel_values(batch[0]), *batch[1:]),
        compute,
        rounds,
    )


def compare(name, models, batch, compute, rounds):
    """Print the ratio of each dtype: `models` {"ours", "theirs", ...: (model, loss function)}; losses must agree."""
    batch = [part.to(compute.device) for part in batch]

    def step(key, dtype, fp32_attention):
        model, loss_fn = models[key]
        model.to(compute.device).train().zero_grad(set_to_none=True)
        with (
            torch.autocast(compute.device, dtype, enabled=dtype is not torch.float32),
            attention_in_fp32(fp32_attention),
        ):
            loss = loss_fn(*batch)
        loss.backward()
        return loss.detach()

    half = half_precision(compute)
    for dtype in (torch.float32, half) if half else (torch.float32,):
        plans = {key: (key, dtype, True) for key in models}
        on_cpu = dtype is not torch.float32 and compute.device == "cpu"
        if on_cpu:
            plans["as they come"] = "theirs", dtype, False
        wrong = 1e-4 if dtype is torch.float32 else 0.05  # the same work, and the warm-up
        first, *others = (step(*plan) for plan in plans.values())
        for loss in others:
            torch.testing.assert_close(loss, first, atol=wrong, rtol=0)
        times = {key: [] for key in plans}
        for _ in range(rounds):
            for key, plan in plans.items():
                times[key].append(seconds(lambda plan=plan: step(*plan)))

        def ratio(key, times=times):
            return statistics.median(
                one / other for one, other in zip(times["ours"], times[key], strict=True)
            )

        both = " and ".join(
            f"{1000 * statistics.median(times[key]):,.0f}" for key in ("ours", "theirs")
        )
        how = ", attention in fp32" if on_cpu else ""
        line(
            f"{name}, {str(dtype).removeprefix('torch.')}{how}",
            ratio("theirs"),
            "times",
            2,
            at_most=1.05,
            note=f"{both} ms",
        )
        if "linear" in times:
            line("   theirs with patches by a linear map, as ours", ratio("linear"), "times", 2)
        if on_cpu:
            line(
                "   theirs as it comes, attention in half precision too",
                ratio("as they come"),
                "times",
                2,
                note="on a CPU torch's gradient of it is slow",
            )


# ---------------------------------------------------------------- the race


class Runner:
    """One training of a CLIP on Shapes: the plain recipe and the remedies `chosen`, a step at a time.

    batches: from `recipes.caption_batches`. total: the steps that the schedule is made for. With all remedies the
    weights after every step are those of `recipes.train_clip`.
    """

    def __init__(self, chosen, batches, tokenizer, compute, *, total, seed=0):
        from transformers import CLIPConfig, CLIPModel

        self.chosen, self.compute, self.total, self.seed = chosen, compute, total, seed
        self.batches, self.tokenizer = batches, tokenizer
        ours = recipes.make_shapes_clip(tokenizer, seed=seed)
        torch.manual_seed(seed)
        theirs = CLIPModel(
            CLIPConfig.from_dict(ours.config.to_hf())
        )  # attention: sdpa, transformers' default
        model, other = (ours, theirs) if "towers" in chosen else (theirs, ours)
        if ("towers" in chosen) != ("start" in chosen):
            model.load_state_dict(other.state_dict())
        self.model = model.to(compute.device).train()
        self.judge = copy.deepcopy(ours) if model is theirs else model
        groups = weight_decay_groups(model, 0.05) if "limits" in chosen else model.parameters()
        self.optimizer = torch.optim.AdamW(
            groups, lr=LR, **({"fused": True} if "fused" in chosen else {})
        )
        self.steps, self.seconds, self.recalls = 0, [], []

    def loss(self, pictures, ids, mask):
        model, pixels = self.model, recipes.pixel_values(pictures)
        if not isinstance(model, CLIP):
            return model(
                input_ids=ids, pixel_values=pixels, attention_mask=mask, return_loss=True
            ).loss
        image_embeds, text_embeds = model.encode_image(pixels), model.encode_text(ids, mask)
        with torch.autocast(self.compute.device, enabled=False):
            return info_nce(image_embeds.float(), text_embeds.float(), model.logit_scale.float())

    def step(self):
        """One step of training, timed; returns the loss."""
        chosen, start = self.chosen, now()
        pictures, ids, mask = self.batches(
            self.steps, torch.Generator().manual_seed(step_seed(self.seed, self.steps, "batch"))
        )
        if "short" not in chosen:
            more = (0, recipes.SHAPES_CLIP["context_length"] - ids.shape[1])
            ids, mask = F.pad(ids, more, value=self.tokenizer.pad_token_id), F.pad(mask, more)
        pictures, ids, mask = (part.to(self.compute.device) for part in (pictures, ids, mask))
        if "schedule" in chosen:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.steps, steps=self.total, lr=LR)
        if "limits" in chosen:
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, math.log(100))
        half = half_precision(self.compute) if "bf16" in chosen else None
        with (
            torch.autocast(self.compute.device, half, enabled=half is not None),
            attention_in_fp32("attention" in chosen),
        ):
            loss = self.loss(pictures, ids, mask)
        loss.backward()
        if "limits" in chosen:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        value = loss.item()
        self.seconds.append(now() - start)
        return value

    def recall(self, pictures, texts):
        """R@5 from pictures to captions, in fp32 and by the same towers whatever the recipe; not timed."""
        if self.judge is not self.model:
            self.judge.load_state_dict(self.model.state_dict())
        self.judge.to(self.compute.device)
        self.recalls.append(
            recipes.clip_recall(self.judge, pictures, texts, self.tokenizer, (5,))["image_to_text"][
                5
            ]
        )
        return self.recalls[-1]


def race(runners, held_out, *, goal, every, most, hope=HOPE):
    """Let each of `runners` {name: Runner} take `every` steps in turn until all are at `goal`, or at `most` steps.

    They are evaluated between turns, once their loss is below `hope`. Returns the names of those at the goal.
    """
    arrived, on_the_way = set(), dict(runners)
    while on_the_way:
        for name, runner in list(on_the_way.items()):
            losses = [runner.step() for _ in range(min(every, most - runner.steps))]
            stopped = runner.steps >= most
            if (statistics.mean(losses) < hope or stopped) and runner.recall(*held_out) >= goal:
                arrived.add(name)
            if name in arrived or stopped:
                del on_the_way[name]
            print(
                f"{name}: {runner.steps} steps, loss {losses[-1]:.2f}, R@5 {(runner.recalls or [0])[-1]:.2f}",
                end="   \r",
                file=sys.stderr,
                flush=True,
            )
    return arrived


def course(compute, quick, seed):
    """(function chosen -> Runner, held out pictures and captions, options of `race`) at full or small size."""
    size, count, held = (
        (16, 64, 64) if quick else (TINY.clip_batch_size, TINY.train_images, TINY.val_images)
    )
    tokenizer, total = make_tokenizer(), 4 if quick else TINY.clip_steps
    data = recipes.load_pictures(load_shapes("train", count, progress=False)[0])[:2]
    batches = recipes.caption_batches(*data, tokenizer, size)
    pictures, texts, _ = recipes.load_pictures(load_shapes("val", held, progress=False)[0])
    how = {"goal": 0.0, "every": 2, "hope": math.inf} if quick else {"goal": GOAL, "every": 10}
    return (
        lambda chosen: Runner(
            frozenset(chosen), batches, tokenizer, compute, total=total, seed=seed
        ),
        (pictures, [said[0] for said in texts]),
        {**how, "most": total},
    )


def so_far(runner):
    return (
        f"R@5 {runner.recalls[-1]:.2f} after {runner.steps} steps of "
        f"{1000 * statistics.median(runner.seconds):,.0f} ms"
    )


def time_race(compute, quick=False, seed=0):
    """Seconds of training to R@5 0.90 on 1,000 held-out pictures: the plain recipe's and ours."""
    make, held_out, how = course(compute, quick, seed)
    plain, ours = make(PLAIN), make(REMEDIES)
    arrived = race(
        {"plain": plain, "ours": ours}, held_out, **{**how, "most": how["most"] if quick else 600}
    )
    for name, each, what in (
        ("plain", plain, "the recipe people start from"),
        ("ours", ours, "ours"),
    ):
        line(
            f"CLIP to R@5 {how['goal']:.2f} on Shapes: {what}",
            sum(each.seconds) if name in arrived else None,
            "s",
            note=so_far(each),
        )
    ratio = sum(ours.seconds) / sum(plain.seconds) if "ours" in arrived else None
    line(
        "   ours, of the plain recipe's seconds",
        ratio,
        "times",
        2,
        at_most=0.6,
        note="" if "plain" in arrived else "or less: the plain recipe was stopped",
    )


def time_remedies(compute, quick=False, seed=0, rounds=8):
    """What each remedy is worth alone.

    What changes the time of a step is measured in steps taken in turn, added to the plain recipe and taken from ours;
    what changes how many steps it takes, in trainings that lack it. The same-settings ratio stands between them.
    """
    make, held_out, how = course(compute, quick, seed)
    everything = frozenset(REMEDIES)
    added = [
        ("bf16",),
        ("bf16", "attention"),
        ("short",),
        ("fused",),
        ("towers",),
        ("short", "towers"),
    ]
    taken = [("bf16",), ("fused",), ("towers",), ("towers", "short"), ("towers", "attention")]
    if half_precision(compute) is None:
        added, taken = (
            [part for part in parts if not {"bf16", "attention"} & set(part)]
            for parts in (added, taken)
        )
    plans = PLAIN, everything, *map(frozenset, added), *(everything - set(part) for part in taken)
    rounds, warm = (1, 0) if quick else (rounds, 1)
    a_step = in_turn({chosen: make(chosen).step for chosen in plans}, rounds, warm)
    line(
        "a step of the plain recipe (fp32, text padded to 64, AdamW as it comes)",
        1000 * a_step[PLAIN],
        "ms",
    )
    for part in added[:-1]:  # the last is for the same-settings ratio: neither runs padding
        line(f"   as fast with {words(part)}", a_step[PLAIN] / a_step[frozenset(part)], "times", 2)
    line(
        "   at the same settings (fp32, unpadded, AdamW as it comes), ours of transformers' time",
        a_step[frozenset(("short", "towers"))] / a_step[frozenset(("short",))],
        "times",
        2,
        at_most=1.05,
    )
    line("a step of ours", 1000 * a_step[everything], "ms")
    for part in taken:
        line(
            f"   as fast as without {words(part)}",
            a_step[everything - set(part)] / a_step[everything],
            "times",
            2,
        )

    names = {
        "ours": "ours",
        **{f"without {part}": f"   without {REMEDIES[part]}" for part in STEPS},
    }
    runners = {name: make(everything - {name.removeprefix("without ")}) for name in names}
    arrived = race(runners, held_out, **how)
    for name, each in runners.items():
        what = names[name] if name != "ours" else f"steps to R@5 {how['goal']:.2f}, ours"
        line(what, each.steps if name in arrived else None, "steps", 0, note=so_far(each))


def words(names):
    return " and ".join(REMEDIES[name] for name in names)
