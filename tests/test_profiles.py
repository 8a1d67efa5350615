"""The one knob: what is chosen by default, what an explicit choice promises, and which precision a machine gets."""

import socket
import subprocess
import sys
import time

import pytest
import torch

from vlm_lite import hub as hub_module
from vlm_lite import profiles, speed
from vlm_lite.files import UserError, data_path


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend to be a machine: with or without a GPU, a hub that answers, a model cache."""
    monkeypatch.delenv("VLM_LITE_PROFILE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def pretend(gpu=False, hub=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(hub_module, "_probe", lambda endpoint: hub)

    return pretend


def test_tiny_is_the_default_even_with_a_gpu_and_a_hub_that_answers(machine):
    machine(gpu=True, hub=True)
    assert profiles.get_profile().name == profiles.get_profile(default="tiny").name == "tiny"
    assert profiles.get_profile().reason == "the default"


def test_a_profile_that_the_notebook_has_no_part_for_is_refused(machine):
    machine(gpu=True, hub=True)
    with pytest.raises(UserError, match='"t4" has no part here yet. Choose one of: tiny, smoke'):
        profiles.get_profile(default="t4", offers=("tiny", "smoke"))


def test_the_environment_wins_over_the_choice_of_the_cell_and_not_over_a_name(machine, monkeypatch):
    machine(gpu=True, hub=True)
    assert profiles.get_profile(default="t4").name == "t4"
    monkeypatch.setenv("VLM_LITE_PROFILE", "smoke")
    assert profiles.get_profile(default="t4").name == profiles.get_profile().name == "smoke"
    assert profiles.get_profile("tiny").name == "tiny"


def test_an_unknown_profile_is_named_with_the_ones_there_are(machine, monkeypatch):
    machine()
    with pytest.raises(
        UserError,
        match='profile is "t5", which is no profile. Choose one of: tiny, t4, smoke',
    ):
        profiles.get_profile("t5")
    monkeypatch.setenv("VLM_LITE_PROFILE", "big")
    with pytest.raises(UserError, match='VLM_LITE_PROFILE is "big"'):
        profiles.get_profile()


@pytest.mark.parametrize("cached", [1, 3])
def test_an_explicit_t4_never_falls_back_lists_what_is_missing_and_runs_from_a_complete_cache(
    machine, monkeypatch, cached
):
    machine()
    ids = [profiles.T4.language_model, profiles.T4.vision_model, profiles.T4.vlm_model]
    monkeypatch.setattr(profiles, "cached_snapshot", lambda name: name in ids[:cached])
    if cached == 3:
        assert profiles.get_profile("t4").name == "t4"
        return
    with pytest.raises(UserError) as raised:
        profiles.get_profile("t4")
    assert [name in str(raised.value) for name in ids] == [False, True, True]


def test_a_hub_that_accepts_and_then_says_nothing_costs_three_seconds_at_most(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub_module, "PROBE_SECONDS", 0.3)
        start = time.perf_counter()
        assert hub_module.hub_answers() is False
        assert time.perf_counter() - start < 1.5


def test_importing_profiles_probes_nothing_and_does_not_load_torch():
    code = (
        "import socket, sys; socket.socket.connect = None; import vlm_lite.profiles; "
        "assert not {'torch', 'huggingface_hub', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("native", "precision"), [(False, "fp16"), (True, "bf16")])
def test_a_gpu_that_only_emulates_bf16_gets_fp16(monkeypatch, native, precision):
    monkeypatch.delenv("VLM_LITE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    compute = profiles.get_compute()
    assert (compute.device, compute.mixed_precision) == ("cuda", precision)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "bf16"),
        ("avx2 avx512f avx512_bf16", "bf16"),
        ("avx2 avx512f", "no"),
    ],
)
def test_a_cpu_gets_bf16_only_where_it_is_fast(monkeypatch, tmp_path, flags, precision):
    monkeypatch.delenv("VLM_LITE_CPU", raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    feature = profiles._cpu_bf16_feature(tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(profiles, "_cpu_bf16_feature", lambda: feature)
    compute = profiles.get_compute()
    assert (compute.device, compute.mixed_precision) == ("cpu", precision)
    assert feature is None or feature in compute.reason


def test_any_machine_can_be_made_to_compute_as_a_plain_cpu(monkeypatch):
    monkeypatch.setenv("VLM_LITE_CPU", "plain")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    compute = profiles.get_compute()
    assert (compute.device, compute.mixed_precision) == ("cpu", "no")
    monkeypatch.setenv("VLM_LITE_CPU", "fast")
    with pytest.raises(UserError, match='VLM_LITE_CPU is "fast"; expected "plain"'):
        profiles.get_compute()


def test_a_system_without_cpuinfo_gets_plain_fp32(tmp_path):
    assert profiles._cpu_bf16_feature(tmp_path / "none") is None


def test_a_zoo_name_is_a_folder_and_a_hub_id_stays_itself(tmp_path):
    assert profiles.resolve_model("shapes-clip") == str(data_path("zoo", "shapes-clip"))
    assert profiles.resolve_model("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
    assert profiles.resolve_model(str(tmp_path)) == str(tmp_path)
    with pytest.raises(
        UserError,
        match="'shapes-clap' is neither a folder nor .* The zoo has shapes-clip, shapes-g",
    ):
        profiles.resolve_model("shapes-clap")


def test_a_description_says_what_why_how_much_and_how_to_choose_the_other(monkeypatch):
    tiny = profiles.replace(profiles.TINY, reason="no CUDA GPU is present")
    compute = profiles.Compute("cpu", "bf16", "this CPU has AMX")
    times = {"bf16": {"seconds": {"01_clip": 150, "02_vit": 61}}}
    monkeypatch.setattr(speed, "recorded_times", lambda: times)
    text = profiles.describe(tiny, compute, notebook="01_clip", t4_minutes=40)
    for expected in (
        "tiny",
        "no CUDA GPU is present",
        "no model or data to download, about 2.5 minutes",
        "bf16",
        "GB of memory",
        "this CPU has AMX",
        "VLM_LITE_PROFILE=t4",
        "3.5 GB to download, about 40 minutes (estimated)",
    ):
        assert expected in text
    assert "t4" not in profiles.describe(tiny, compute, notebook="99_none")
    assert "about 1 minute (" in profiles.describe(tiny, compute, notebook="02_vit")


def test_a_rehearsal_is_offered_where_t4_is(machine):
    machine()
    assert (
        profiles.REHEARSAL.vision_model == profiles.T4.vision_model
        and profiles.REHEARSAL.image_size == 224
    )
    with pytest.raises(UserError, match='profile "rehearsal" has no part here yet'):
        profiles.get_profile("rehearsal", offers=("tiny", "smoke"))


def test_a_mirror_in_a_folder_stands_for_the_hub(machine, monkeypatch, tmp_path):
    machine()
    for model in (profiles.T4.vision_model, profiles.T4.language_model, profiles.T4.vlm_model):
        (tmp_path / "huggingface.co" / model / "resolve" / "main").mkdir(parents=True)
    monkeypatch.setenv("VLM_LITE_MIRROR", str(tmp_path))
    assert profiles.get_profile("t4").name == "t4"
    found = profiles.resolve_model(profiles.T4.language_model)
    assert found == str(
        tmp_path / "huggingface.co" / profiles.T4.language_model / "resolve" / "main"
    )
