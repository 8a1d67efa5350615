"""`vlm-lite report`: one page and its JSON, the same figures in both, texts escaped, nothing half-written."""

import html.parser
import json
import shutil

import pytest

from vlm_lite import cli
from vlm_lite.cli import report
from vlm_lite.encoded import encode_shapes
from vlm_lite.encoded import probe as encoded_probe
from vlm_lite.files import data_path
from vlm_lite.lessons.vqa import score_vqa
from vlm_lite.models.vlm import load_vlm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    return report.collect("shapes-vlm", questions=60, pictures=64)


def test_the_figures_are_those_of_the_evaluators(found):
    facts, pictures = found
    vlm = load_vlm("shapes-vlm")
    data = encode_shapes(vlm.vision, "val", 64, progress=False)
    rows, probe = data.questions.select(range(60)), encoded_probe(vlm, data, limit=60)
    assert facts["accuracy"]["vlm"]["value"] == pytest.approx(
        score_vqa(probe.answers["vlm"], rows)["overall"] / 100
    )
    assert facts["multimodal gain"] == pytest.approx(vars(probe.gain))
    assert list(facts["accuracy"]) == list(report.ORDER)
    assert facts["pairs"]["both right"]["blind"] == facts["pairs"]["both right"]["majority"] == 0
    assert sum(of["questions"] for of in facts["by type"].values()) == facts["questions"] == 60
    wrong = sum(score <= 0.5 for score in probe.scores["vlm"])
    assert sum(of["wrong"] for of in facts["by type"].values()) == wrong
    assert {row["image_id"] for row in facts["examples"]} <= set(pictures)
    json.dumps(facts, allow_nan=False)


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.data = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def test_the_page_is_whole_and_loads_nothing(found):
    parsed = Tags(report.page(*found))
    assert not parsed.open
    known = "html meta title style body h1 h2 h3 p b img table thead tbody tr th td figure span br"
    assert {tag for tag, _ in parsed.tags} <= set(known.split())
    sources = [attributes["src"] for tag, attributes in parsed.tags if tag == "img"]
    assert len(sources) > 10 and all(source.startswith("data:image/") for source in sources)
    assert not any(
        name.startswith("on") or name == "href"
        for _, attributes in parsed.tags
        for name in attributes
    )


def test_texts_from_a_model_or_a_file_are_escaped(found):
    bad = '<script>alert("1")</script>'
    facts = json.loads(json.dumps(found[0]))
    facts["model"] = facts["made by"] = bad
    for row in (
        facts["examples"]
        + facts["written"]
        + [r for rows in facts["failures"].values() for r in rows]
    ):
        row.update(
            {
                name: bad
                for name in ("question", "right answer", "vlm", "blind", "shuffled", "reference")
                if name in row
            }
        )
    for of in ("by type", "failures", "captions"):
        facts[of] = {bad + name: value for name, value in facts[of].items()}
    text = report.page(facts, found[1])
    assert "<script" not in text and "&lt;script&gt;" in text
    assert bad in "".join(Tags(text).data)


def test_a_bridge_score_that_is_undefined_is_printed_as_such(found):
    facts = {
        **found[0],
        "bridge score": {"value": None, "low": None, "high": None, "reason": "oracle < blind"},
    }
    assert "undefined (oracle &lt; blind)" in report.page(facts, found[1])


def test_the_command_writes_both_files_and_prints_the_scores(found, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "collect", lambda run, **options: found)
    assert (
        cli.main(["report", "shapes-vlm", "--out", str(tmp_path / "a.html"), "--questions", "60"])
        == 0
    )
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(json.dumps(found[0]))
    assert (tmp_path / "a.html").read_text() == report.page(*found)
    printed = capsys.readouterr().out
    assert f"{100 * found[0]['accuracy']['vlm']['value']:.1f}%" in printed and "a.json" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json"]


def test_help_has_an_example_that_the_command_understands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    words = capsys.readouterr().out.split("example:\n")[1].split("\n\n")[0].split()
    assert words[:2] == ["vlm-lite", "report"]
    cli.build_parser().parse_args(words[1:])


def test_bad_runs_end_with_status_2(tmp_path, capsys):
    for arguments, words in (
        (["nowhere-vlm"], "'nowhere-vlm' is neither a folder nor a model of the zoo"),
        ([str(tmp_path)], "config.json does not exist"),
        ([str(data_path("zoo", "shapes-gpt2"))], "not the config of a VLM"),
        (["shapes-vlm", "--out", str(tmp_path / "a.txt")], "ends in .html"),
    ):
        assert cli.main(["report", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_cut_weights_is_named(tmp_path, capsys):
    shutil.copytree(data_path("zoo", "shapes-vlm"), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert cli.main(["report", str(tmp_path / "cut"), "--out", str(tmp_path / "a.html")]) == 2
    assert "model.safetensors" in capsys.readouterr().err and not (tmp_path / "a.html").exists()
