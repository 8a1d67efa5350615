"""The Shapes world in LLaVA's, POPE's and MMBench's formats, read back by the readers of the real files."""

import collections

from vlm_lite.data import records
from vlm_lite.data.shapes import load_shapes
from vlm_lite.evals.mmbench import mmbench_scores
from vlm_lite.files import home
from vlm_lite.rehearsal.shapes_files import load_shapes_benchmarks


def test_the_three_files_tell_the_truth_of_the_questions_they_are_made_from():
    captions, questions = load_shapes("val", 32, progress=False)
    instructions, pope, choices = load_shapes_benchmarks("val", 32)
    assert instructions["image_id"][:] == captions["image_id"][:]
    truth = {
        (row["image_id"], row["question"]): row["answer"]
        for row in questions.remove_columns("image")
    }
    asked = 0
    for row, texts in zip(
        instructions.remove_columns("image"), captions["captions"][:], strict=True
    ):
        turns = [turn["content"] for turn in row["conversation"]]
        assert turns[1] == texts[0]
        for question, answer in zip(turns[2::2], turns[3::2], strict=True):
            known = truth[row["image_id"], question]
            asked += 1
            assert known in answer or known == "0" and "are no" in answer, (question, answer, known)
    assert asked == len(questions)
    for row in pope.remove_columns("image"):
        assert truth[row["image_id"], row["question"]] == row["answer"]
    labels = collections.Counter(pope["answer"][:])
    assert labels["yes"] == labels["no"] > 0
    stems = {row["question"].split("\n")[0] for row in choices.remove_columns("image")}
    assert stems <= {question for _, question in truth}
    for row in choices.remove_columns("image"):
        options = dict(line.split(". ", 1) for line in row["question"].split("\n")[1:])
        assert options[row["answer"]] in set(truth.values())


def test_mmbenchs_rotations_are_whole_and_their_picture_is_the_questions():
    _, questions = load_shapes("val", 32, progress=False)
    _, _, choices = load_shapes_benchmarks("val", 32)
    (path,) = home().rglob("val-32-0/annotations/mmbench_shapes_val.tsv")
    rows = records.read_mmbench(path)
    groups = collections.Counter(row["index"] % 1_000_000 for row in rows)
    assert set(groups.values()) == {4}
    scores = mmbench_scores(rows, {row["index"]: row["answer"] for row in rows})
    assert scores["circular"] == 1
    scores = mmbench_scores(rows, {row["index"]: "A" for row in rows})
    assert scores["circular"] == 0 and scores["rows"] == 0.25
    shown = {row["question"].split("\n")[0]: row["image"] for row in choices}
    question = next(row for row in questions if row["question"] in shown)
    pictures = [row["image"] for row in questions if row["question"] == question["question"]]
    assert shown[question["question"]].tobytes() in [picture.tobytes() for picture in pictures]
