"""VLMEvalKit's calling convention and its tables: what its inference loop does with a model, done to ours."""

import re
import sys
import types
from pathlib import Path

import pandas
import pytest
from PIL import Image

from tests.evals.official import HEADER, M, cells, lines, picture, tabs
from vlm_lite.evals.mmbench import (
    match_predictions,
    mmbench_scores,
    read_mmbench,
    read_predictions,
    sample_groups,
)
from vlm_lite.evals.vlmevalkit import VLMEvalModel, write_mmbench, write_pope
from vlm_lite.files import UserError


class Recorder:
    """Answers with the size of the picture and the text, and keeps how it was asked."""

    def __init__(self):
        self.calls = []

    def answer(self, images, texts, max_new_tokens=16):
        self.calls.append((images, texts, max_new_tokens))
        return [f"{images and images[0].size} {text}" for text in texts]


@pytest.fixture
def photo(tmp_path):
    Image.new("L", (20, 10)).save(tmp_path / "a.jpg")
    return str(tmp_path / "a.jpg")


def infer(model, messages, dataset):
    """The part of vlmeval/inference.py that meets a model: what it asks of it, in its order and by its keywords."""
    assert not getattr(model, "is_api", False)
    model.set_dump_image(lambda line: None)
    assert not (hasattr(model, "use_custom_prompt") and model.use_custom_prompt(dataset))
    return [str(model.generate(message=message, dataset=dataset)) for message in messages]


def part(kind, value):
    return {"type": kind, "value": value}


def test_its_inference_loop_gets_an_answer_to_each_message(photo):
    model = VLMEvalModel(Recorder(), max_new_tokens=7)
    message = [part("image", photo), part("text", "Question: what is it?\nA. cat\n")]
    asked = [dict(each) for each in message]
    assert (
        infer(model, [message, message], "MMBench_DEV_EN") == [f"(20, 10) {asked[1]['value']}"] * 2
    )
    images, _, most = model.model.calls[0]
    assert images[0].mode == "RGB" and most == 7 and message == asked  # left as it was


@pytest.mark.parametrize("message", [["photo", "what?"], "what?", part("text", "what?")])
def test_the_short_forms_of_a_message_are_brought_to_the_long_one(photo, message):
    is_list = isinstance(message, list)
    answer = VLMEvalModel(Recorder()).generate([photo, "what?"] if is_list else message)
    assert answer == f"{(20, 10) if is_list else None} what?"


def test_generate_inner_joins_texts_and_shows_the_first_of_several_pictures(photo):
    message = [
        part("text", "first"),
        part("image", photo),
        part("image", "b"),
        part("text", "second"),
    ]
    with pytest.warns(UserWarning, match="2 pictures"):
        assert VLMEvalModel(Recorder()).generate_inner(message) == "(20, 10) first\nsecond"


@pytest.mark.parametrize(
    "message, words",
    [
        ([part("video", "a.mp4"), part("text", "what?")], r"message\[0\] is .*'video'"),
        ([part("text", "")], r"message\[0\]"),
        ([{"type": "image"}], r"message\[0\]"),
        ([], "no text"),
        ([part("image", __file__)], "no text"),
        ([part("text", "what?"), part("image", __file__)], "not an image"),
        ([part("text", "what?"), part("image", "nowhere.png")], "nowhere.png does not exist"),
    ],
)
def test_a_message_that_will_not_do_is_named(message, words):
    with pytest.raises(UserError, match=words):
        VLMEvalModel(Recorder()).generate_inner(message)


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


def test_predictions_are_a_table_as_pandas_reads_it_without_pictures(rows, tmp_path):
    said = {1: "A", M + 1: 'the "dog",\tor\nso', 2: "B. a dog", 3: "cat"}
    write_mmbench(tmp_path / "ours_MMBench_DEV_EN.tsv", rows, said)
    # as vlmeval.smp.load does
    table = pandas.read_csv(tmp_path / "ours_MMBench_DEV_EN.tsv", sep="\t")
    wanted = {"index", "question", "A", "B", "answer", "category", "prediction"}
    assert "image" not in table and wanted <= set(table)
    assert dict(zip(table["index"], table["prediction"], strict=True)) == said
    given = read_predictions(tmp_path / "ours_MMBench_DEV_EN.tsv")
    kept, given, _ = match_predictions(rows, given, file="ours", against="t")
    assert mmbench_scores(kept, given) == mmbench_scores(rows, said)


def test_a_column_that_no_row_fills_is_left_out_since_a_mean_over_it_would_be_nan(rows, tmp_path):
    plain = [{**row, "split": "", "l2-category": ""} for row in rows]
    write_mmbench(tmp_path / "p.tsv", plain, {row["index"]: row["answer"] for row in rows})
    # its report_acc means over the values of these columns
    table = pandas.read_csv(tmp_path / "p.tsv", sep="\t")
    assert {"split", "l2-category", "category"} & set(table) == {"category"}
    assert not table["category"].isna().any()
    assert read_mmbench(tmp_path / "p.tsv") == [{**row, "image": ""} for row in plain]


def test_a_sample_of_whole_questions_may_be_predicted_and_a_missing_row_is_named(rows, tmp_path):
    some = sample_groups(rows, 2)
    write_mmbench(tmp_path / "p.tsv", some, {row["index"]: "A" for row in some})
    assert len(read_predictions(tmp_path / "p.tsv")) == len(some)
    with pytest.raises(UserError, match="1 index.* missing"):
        write_mmbench(tmp_path / "q.tsv", rows, {1: "A", 2: "B", 3: "A"})
    assert not (tmp_path / "q.tsv").exists()


def test_pope_is_exported_with_its_splits_as_categories(tmp_path):
    splits = {}
    for name, label in (("random", "no"), ("popular", "yes")):
        labels, answers = tmp_path / f"{name}.json", tmp_path / f"{name}.jsonl"
        about = {"image": "a.jpg", "label": label}
        labels.write_text(
            lines({"question_id": k, "text": f"Is there a {k}?", **about} for k in (1, 2))
        )
        answers.write_text(lines({"question_id": k, "answer": f"{name} {k}"} for k in (2, 1)))
        splits[name] = labels, answers
    write_pope(tmp_path / "ours_POPE.tsv", splits)
    table = pandas.read_csv(tmp_path / "ours_POPE.tsv", sep="\t")
    assert table.values.tolist() == [
        [0, "Is there a 1?", "No", "random", "random 1"],
        [1, "Is there a 2?", "No", "random", "random 2"],
        [2, "Is there a 1?", "Yes", "popular", "popular 1"],
        [3, "Is there a 2?", "Yes", "popular", "popular 2"],
    ]
    assert list(table) == ["index", "question", "answer", "category", "prediction"]


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
