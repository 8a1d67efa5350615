"""VLMEvalKit's calling convention and its tables: what its inference loop does with a model, done to ours."""

import re
import sys
import types
from pathlib import Path

import pandas
import pytest

from tests.evals.official import HEADER, M, cells, picture, tabs
from vlm_lite.lessons.mmbench import read_mmbench, write_mmbench


class Recorder:
    """Answers with the size of the picture and the text, and keeps how it was asked."""

    def __init__(self):
        self.calls = []

    def answer(self, images, texts, max_new_tokens=16):
        self.calls.append((images, texts, max_new_tokens))
        return [f"{images and images[0].size} {text}" for text in texts]


def infer(model, messages, dataset):
    """The part of vlmeval/inference.py that meets a model: what it asks of it, in its order and by its keywords."""
    assert not getattr(model, "is_api", False)
    model.set_dump_image(lambda line: None)
    assert not (hasattr(model, "use_custom_prompt") and model.use_custom_prompt(dataset))
    return [str(model.generate(message=message, dataset=dataset)) for message in messages]


@pytest.fixture
def rows(tmp_path):
    table = [
        cells(1, "A", picture("red")),
        cells(M + 1, "B", "1"),
        cells(2, "B", picture("blue"), category="plants"),
        cells(3, "A", picture("red")),
    ]
    path = tmp_path / "t.tsv"
    path.write_text(tabs([HEADER, *table]))
    return read_mmbench(path)


def test_a_table_that_is_written_is_read_as_it_was(rows, tmp_path):
    write_mmbench(tmp_path / "again.tsv", rows)
    assert read_mmbench(tmp_path / "again.tsv") == rows


def test_the_lines_of_the_readme_ask_whole_questions_and_hand_over_their_answers(
    rows, tmp_path, monkeypatch, capsys
):
    """Against a stand-in for VLMEvalKit with the signatures of vlmeval/dataset/__init__.py and vlmeval/inference.py."""
    from vlm_lite.models import pretrained

    def build_dataset(dataset_name, **kwargs):
        write_mmbench(tmp_path / "bench.tsv", rows)
        data = pandas.read_csv(tmp_path / "bench.tsv", sep="\t").astype({"index": str})
        prompts = lambda line: [dict(type="text", value=f"Question: {line['question']}\n")]  # noqa: E731
        return types.SimpleNamespace(
            dataset_name=dataset_name,
            data=data,
            dump_image=None,
            build_prompt=prompts,
            evaluate=lambda eval_file, **judge: pandas.read_csv(eval_file, sep="\t"),
        )

    def infer_data_job(model, work_dir, model_name, dataset, verbose=False, api_nproc=4):
        messages = [dataset.build_prompt(line) for _, line in dataset.data.iterrows()]
        dataset.data["prediction"] = infer(model, messages, dataset.dataset_name)
        dataset.data.to_csv(f"{work_dir}/{model_name}_{dataset.dataset_name}.tsv", sep="\t")

    for name, function in (("dataset", build_dataset), ("inference", infer_data_job)):
        monkeypatch.setitem(
            sys.modules, f"vlmeval.{name}", types.SimpleNamespace(**{function.__name__: function})
        )
    monkeypatch.setitem(sys.modules, "vlmeval", types.ModuleType("vlmeval"))
    monkeypatch.setattr(pretrained, "PretrainedVLM", lambda name, **options: Recorder())
    monkeypatch.setenv("PRED_FORMAT", "")
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[2] / "docs" / "evaluating.md"
    (code,) = re.findall(r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    exec(code.replace('"MMBench_DEV_EN", 100', '"MMBench_DEV_EN", 2'), {"__name__": "readme"})
    asked = pandas.read_csv("outputs/smol_MMBench_DEV_EN.tsv", sep="\t")
    whole = {index % M for index in asked["index"]}
    assert len(whole) == 2 and len(asked) == sum(row["index"] % M in whole for row in rows)
    assert len(pandas.read_csv("outputs/smol_POPE.tsv", sep="\t")) == len(rows)
    assert asked["prediction"].tolist() == [f"None Question: {q}\n" for q in asked["question"]]
    assert "prediction" in capsys.readouterr().out
