"""The one knob: which world a notebook runs in (`Profile`), and on what device and precision (`Compute`).

`tiny` is the embedded Shapes world, offline on any CPU; `t4` is real photographs on a GPU; `smoke` is `tiny` with a
few dozen images and a few steps, which shows that code runs and never how well; `rehearsal` does the same for `t4`, at its sizes.
`tiny` is the default, on a GPU as well: `t4` downloads gigabytes, and is chosen by hand. Nothing is probed, and torch is
not imported, before a function here is called.
"""

import os
import platform
from ast import literal_eval
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path

from vlm_lite.files import UserError, data_path, home, read_json
from vlm_lite.hub import cached_snapshot, mirrored_model, told_offline

TABLE = """
name                    tiny         t4                                          smoke
vision_model            shapes-clip  openai/clip-vit-base-patch16                shapes-clip
language_model          shapes-gpt2  openai-community/gpt2                       shapes-gpt2
vlm_model               shapes-vlm   HuggingFaceTB/SmolVLM2-256M-Video-Instruct  shapes-vlm
image_size              64           224                                         64
train_images            8000         5000                                        32
val_images              1000         1000                                        24
contrastive_images      8000         5000                                        64
contrastive_batch_size  64           128                                         8
contrastive_steps       360          1500                                        4
contrastive_lr          1e-3         5e-4                                        1e-3
vit_batch_size          64           64                                          8
vit_steps               800          800                                         2
vit_lr                  2e-3         2e-3                                        2e-3
connector_batch_size    16           64                                          8
connector_per_row       4            6                                           2
connector_steps         240          1500                                        2
connector_lr            1e-2         3e-4                                        1e-2
num_query_tokens        16           32                                          16
stage_images            8000         5000                                        32
stage_batch_size        32           64                                          8
stage_steps             120,40,60    600,600,600                                 2,2,2
download_gb             0.0          3.5                                         0.0
"""  # learning rates are peaks; download_gb is an estimate
NAMES, *COLUMNS = zip(*(line.split() for line in TABLE.strip().splitlines()), strict=True)


@dataclass(frozen=True)
class Profile(make_dataclass("Sizes", NAMES, frozen=True)):
    """One world: the ids, sizes and step counts of TABLE, the reason why it was chosen, and its mirror.

    mirror: a folder laid out like the sites that data come from; "" for the sites themselves.
    """

    reason: str = ""
    mirror: str = ""

    @property
    def contrastive(self):
        """What notebook 01's training takes: its steps, batch size and learning rate."""
        return {k: getattr(self, f"contrastive_{k}") for k in ("steps", "batch_size", "lr")}


def _value(text):
    """A cell of TABLE: a number, numbers with commas, or text."""
    return literal_eval(text) if text[0].isdigit() else text


TINY, T4, SMOKE = (Profile(*map(_value, column)) for column in COLUMNS)
REHEARSAL = replace(T4, name="rehearsal", download_gb=0.0)
PROFILES = {profile.name: profile for profile in (TINY, T4, SMOKE, REHEARSAL)}


@dataclass(frozen=True)
class Compute:
    """Where the arithmetic runs: `device` "cpu" or "cuda", `mixed_precision` as accelerate names it, and why."""

    device: str
    mixed_precision: str
    reason: str

    @property
    def hardware(self):
        """What a record says of the machine: device, cores, processor, precision."""
        machine = f"{os.cpu_count()} cores, {platform.machine()}"
        return f"{self.device}, {machine}, {self.mixed_precision}"

    @property
    def for_accelerate(self):
        """What `accelerate.Accelerator` takes. Of several processes each takes its share of one step's batch."""
        from accelerate import DataLoaderConfiguration

        return {
            "cpu": self.device == "cpu",
            "mixed_precision": self.mixed_precision,
            "dataloader_config": DataLoaderConfiguration(split_batches=True),
        }


def get_profile(name=None, *, default="tiny", offers=("tiny", "t4", "smoke")):
    """The profile called `name`; None: the one that VLM_LITE_PROFILE names, and where it is not set, `default`.

    `offers` names the profiles that the caller has a part for. Raises UserError for an unknown name, for one the caller
    does not offer, and for a "t4" that is told to stay offline and does not find its models in the local cache.
    """
    asked, source = name or default, "you chose it" if name or default != "tiny" else "the default"
    if name is None and os.environ.get("VLM_LITE_PROFILE"):
        asked, source = os.environ["VLM_LITE_PROFILE"], "as VLM_LITE_PROFILE asks"
    if asked not in PROFILES:
        where = "VLM_LITE_PROFILE" if "VLM_LITE_PROFILE" in source else "profile"
        raise UserError(
            f'{where} is "{asked}", which is no profile. Choose one of: {", ".join(PROFILES)}.'
        )
    if asked == "rehearsal" and "t4" in offers:
        made = home() / "rehearsal.json"  # `vlm_lite.rehearsal.mirror.make_profile` wrote it
        if not made.exists():
            raise UserError(
                f'profile "rehearsal" needs sites that this machine has not made yet ({made}): run '
                "`vlm-lite rehearse` once."
            )
        fields = read_json(made)
        return Profile(**{**fields, "stage_steps": tuple(fields["stage_steps"])})
    if asked not in offers:
        raise UserError(
            f'profile "{asked}" has no part here yet. Choose one of: {", ".join(offers)}.'
        )
    profile = replace(PROFILES[asked], reason=source)
    if asked == "t4" and told_offline():
        ids = profile.vision_model, profile.language_model, profile.vlm_model
        missing = [name for name in ids if not (cached_snapshot(name) or mirrored_model(name))]
        if missing:
            from huggingface_hub import constants

            raise UserError(
                f'profile "t4" needs {", ".join(missing)}: missing from {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is '
                'set. Run once with a network (`hf download ID` for each), or choose profile "tiny".'
            )
    return profile


def get_compute():
    """The device and the mixed precision that this machine is good at.

    A GPU without native bf16 (a T4 only emulates it) gets fp16; a CPU gets bf16 where it has AVX-512-BF16 or AMX,
    because the same product then runs several times faster, and plain fp32 elsewhere. VLM_LITE_CPU=plain makes any
    machine one without a GPU and without bf16, as `make course CPU=plain` rehearses it.
    """
    import torch

    wanted = os.environ.get("VLM_LITE_CPU", "")
    if wanted not in ("", "plain"):
        raise UserError(
            f'VLM_LITE_CPU is "{wanted}"; expected "plain", or nothing for the CPU as it is.'
        )
    if wanted == "plain":
        return Compute("cpu", "no", "VLM_LITE_CPU=plain: as on a CPU without bf16")
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Compute("cuda", "bf16", f"{name} computes in bf16")
        return Compute("cuda", "fp16", f"{name} has no native bf16")
    feature = _cpu_bf16_feature()
    if feature:
        return Compute("cpu", "bf16", f"no CUDA GPU; this CPU has {feature}")
    lacks = "this CPU has neither AVX-512-BF16 nor AMX, so bf16 would be slower"
    return Compute("cpu", "no", f"no CUDA GPU; {lacks}")


def _cpu_bf16_feature(cpuinfo="/proc/cpuinfo"):
    """ "AMX", "AVX-512-BF16" or None, from Linux's list of CPU flags (other systems: None)."""
    path = Path(cpuinfo)
    flags = path.read_text(encoding="utf-8", errors="replace").split() if path.exists() else ()
    return "AMX" if "amx_bf16" in flags else "AVX-512-BF16" if "avx512_bf16" in flags else None


def resolve_model(name):
    """What `from_pretrained` takes for `name`: a path that is there, a model's folder in the zoo, or the hub id itself.

    A hub id has a "/" in it; a zoo name has none. A mirror that is a folder and has the model stands for the hub: see
    `hub`. Raises UserError when there is no such folder or model, or when the zoo lacks the model's files.
    """
    if Path(name).exists():
        return name
    if "/" in name:
        return mirrored_model(name) or name
    zoo = sorted(folder.name for folder in data_path("zoo").iterdir() if folder.is_dir())
    if name not in zoo:
        raise UserError(
            f"{name!r} is neither a folder nor a model of the zoo. The zoo has {', '.join(zoo)}; an id of "
            "the hub has a / in it."
        )
    return str(data_path("zoo", name))


def memory_gb():
    """The machine's memory in GB (10^9 bytes)."""
    import psutil

    return psutil.virtual_memory().total / 1e9


def describe(profile=None, compute=None, *, notebook=None, t4_minutes=None):
    """A few lines that say what was chosen and why, what it costs, and how to choose the other world.

    notebook: its name in the recorded times (data/times.json). t4_minutes: an estimate, where it has a t4 part.
    """
    from vlm_lite import speed

    profile, compute = profile or get_profile(), compute or get_compute()
    seconds = speed.recorded_times()[speed.kind_of_cpu(compute)]["seconds"].get(notebook)
    minutes = {"tiny": max(0.5, round(seconds / 30) / 2) if seconds else None}
    if t4_minutes or notebook is None:
        minutes["t4"] = t4_minutes
    where = "real photographs from the hub" if profile.download_gb else "the embedded Shapes world"
    where = "a made mirror of t4's sites" if profile.mirror else where
    device = f"{os.cpu_count()} CPU cores, {memory_gb():.0f} GB of memory"
    if compute.device == "cuda":
        import torch

        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        device = f"GPU with {memory:.0f} GB, {device}"
    precision = "fp32" if compute.mixed_precision == "no" else f"{compute.mixed_precision} autocast"
    lines = {
        "profile": f"{profile.name}, {where} ({profile.reason})",
        "cost": _cost(profile, minutes),
        "machine": f"{device}; Python {platform.python_version()}",
        "device": f"{compute.device}, {precision} ({compute.reason})",
    }
    other = "t4" if profile.name != "t4" else "tiny"
    if other in minutes:
        choice = f'profile = "{other}" above, or VLM_LITE_PROFILE={other}'
        lines["other"] = f"{choice}: {_cost(PROFILES[other], minutes)}"
    return "\n".join(f"{name:8} {text}" for name, text in lines.items())


def _cost(profile, minutes):
    size = f"about {profile.download_gb:g} GB" if profile.download_gb else "no model or data"
    expected = minutes.get("tiny" if profile.name == "smoke" else profile.name)
    if expected is None:
        return f"{size} to download"
    measured = "estimated" if profile.name == "t4" else "on two CPU cores"
    unit = "minute" if expected == 1 else "minutes"
    return f"{size} to download, about {expected:g} {unit} ({measured})"
