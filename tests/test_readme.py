"""What README.md, docs/ and data/README.md say is so: their commands exist, their examples run, and so on."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from tools import notebooks, readme_gif
from vlm_lite import plots
from vlm_lite.cli import ZOO, build_parser
from vlm_lite.data import scenes

ROOT = notebooks.ROOT
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*notebooks.pages(), ROOT / "data" / "README.md")
}
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())
PRINTED = {
    "docs/teaching.md": ("one-directional", "The cells below use vlm_lite's."),
    "docs/evaluating.md": ("all questions", "bridge score", "CIDEr"),
    "docs/data.md": ("a blue image",),
}
STUDY_OR_MODEL = {
    "NAME": "clip_infonce"
}  # a placeholder of the pages, and something to try in its place


def fences(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def commands(text):
    """Every command of the page as words: lines of its shell fences, and `make x` and `vlm-lite x` within the prose."""
    lines = [line for fence in fences(text, "sh") for line in fence.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    lines += re.findall(r"`((?:make|vlm-lite) [^`]+)`", prose)
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def make_targets():
    return set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_exists(page):
    named = {
        word
        for words in commands(PAGES[page])
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word
    }
    assert named - make_targets() == set()
    assert page != "README.md" or {"course", "test"} <= named


@pytest.mark.parametrize("page", PAGES)
def test_every_vlm_lite_command_that_a_page_names_is_understood(page):
    for words in commands(PAGES[page]):
        if words[0] == "torchrun":
            assert (ROOT / words[-1]).is_file()
        if words[0].endswith(("vlm-lite", "vlm_lite")):
            build_parser().parse_args([STUDY_OR_MODEL.get(word, word) for word in words[1:]])


def test_the_shell_examples_hold_nothing_else_but_the_clone_and_the_container():
    other = [
        words
        for words in commands(ALL)
        if words[0] not in ("make", "vlm-lite", ".venv/bin/vlm-lite", "torchrun")
    ]
    slug, _ = notebooks.repository()
    clone = [["git", "clone", f"https://github.com/{slug}"], ["cd", slug.split("/")[1]]]
    assert len([words for words in other if words in clone]) == 2 * ALL.count("git clone https")
    grading = [words for words in other if words not in clone and words[0] != "pip"]
    assert [words[:2] for words in grading] == [
        ["docker", "build"],
        ["mkdir", "-p"],
        ["docker", "run"],
    ]
    containers = [words for words in grading if words[0] == "docker"]
    assert "none" in containers[1]
    assert (ROOT / containers[0][containers[0].index("-f") + 1]).is_file()


def test_the_studies_and_checkpoints_that_the_pages_name_are_those_there_are():
    from vlm_lite.studies import STUDIES

    named = [words[1:] for words in commands(ALL) if words[0].endswith("vlm-lite")]
    assert {words[1] for words in named if words[0] == "study"} - {"NAME"} <= set(STUDIES)
    assert {words[2] for words in named if words[:2] == ["zoo", "build"]} - {"NAME"} <= set(ZOO)
    assert set(re.findall(r"^\| `(shapes-\w+)` \|", PAGES["data/README.md"], flags=re.M)) == set(
        ZOO
    )


def test_the_readme_s_test_command_is_what_ci_runs():
    last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    command = last.removeprefix("exec ").removesuffix(" </dev/null")
    assert shlex.split(command) in commands(README)


def test_the_badge_and_the_clone_name_the_one_repository():
    slug, ref = notebooks.repository()
    assert set(re.findall(r"github(?:\.com)?/([\w.-]+/[\w.-]+?)(?=[/\s)])", ALL)) == {slug}
    assert f"/github/{slug}/blob/{ref}/notebooks/00_start_here.ipynb)" in README


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_examples_run(page, capsys):
    for code in fences(PAGES[page], "python"):
        exec(compile(code, page, "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert [words for words in PRINTED.get(page, ()) if words not in printed] == []


def test_the_readme_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", [page for page in PAGES if page != "data/README.md"])
def test_measured_numbers_stand_in_the_generated_parts_only(page):
    text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", PAGES[page], flags=re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    assert (
        re.findall(
            r"\d[\d.,]*\s?(?:%|percent|points?|s|seconds?|min|minutes?|KB|MB|GB|times)\b", text
        )
        == []
    )


@pytest.mark.parametrize("page", PAGES)
def test_a_paragraph_has_at_most_80_words(page):
    text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", PAGES[page], flags=re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    paragraphs = re.split(r"\n\s*\n|\n(?=[|#]|- |\d+\. )", text)
    assert [each for each in paragraphs if len(each.split()) > 80] == []


def test_the_glossary_is_in_order_and_whole():
    rows = re.findall(r"^\| (.*) \|$", PAGES["docs/glossary.md"], flags=re.M)[2:]
    cells = [row.split(" | ") for row in rows]
    assert {len(each) for each in cells} == {3} and all(map(all, cells))
    terms = [each[0].lower() for each in cells]
    assert len(terms) > 90 and terms == sorted(set(terms))


def test_the_data_card_lists_the_world_as_it_is():
    card = " ".join(PAGES["data/README.md"].split())
    for words in (
        scenes.SHAPES,
        scenes.COLOURS,
        scenes.SIZES,
        sorted(" ".join(pair) for pair in scenes.HELD_OUT),
    ):
        assert f"({', '.join(words)})" in card
    assert (
        f"{scenes.IMAGE_SIZE} pixels wide" in card
        and f"{scenes.GRID} rows and {scenes.GRID} columns" in card
    )
    _, targets, pools = scenes._digits()
    assert f"{len(targets)} digits" in card
    assert (
        f"{len(pools['train'])} of them are for `train`, the other {len(pools['test'])} for" in card
    )


# ---------------------------------------------------------------- the moving picture


def test_the_moving_picture_is_light_moves_and_starts_again():
    with Image.open(readme_gif.TARGET) as image:
        assert readme_gif.TARGET.stat().st_size < 600_000
        assert image.n_frames >= 3 and image.info.get("loop") == 0
        assert 640 <= image.width <= 800
    assert f'src="{readme_gif.TARGET.relative_to(ROOT).as_posix()}"' in README.split("\n## ")[0]


def test_the_moving_picture_shows_the_answers_of_the_checkpoints_that_are_here():
    with Image.open(readme_gif.TARGET) as image:
        comment = image.info.get("comment", b"").decode()
    assert readme_gif.zoo_hash() in comment, (
        "docs/ask.gif shows the answers of another model: run `make gif`"
    )


@pytest.mark.slow
def test_the_story_opens_with_an_answer_and_comes_to_rest_with_each_bar_at_its_blind_value(
    tmp_path,
):
    images = [np.full((3, 64, 64), level, np.uint8) for level in (40, 80)]
    seen, swapped, blind = (dict.fromkeys(scenes.COLOURS, 0.1) for _ in range(3))
    seen["red"] = swapped["blue"] = 0.9
    shown, milliseconds = readme_gif.frames([*images, None], [seen, swapped, blind])
    options = {"answers": list(scenes.COLOURS), "blind": 0.1}
    for place, image, chances, step in ((0, images[0], seen, 0), (18, None, blind, 2)):
        title = readme_gif.STEPS[step]
        still = plots.ask_panel(image, readme_gif.QUESTION, chances, title=title, **options)
        assert shown[place].tobytes() == still.to_image().tobytes()
        assert milliseconds[place] == max(milliseconds)
    readme_gif.save(shown, milliseconds, tmp_path / "ask.gif", b"a comment")
    with Image.open(tmp_path / "ask.gif") as image:
        assert image.info["comment"] == b"a comment" and image.n_frames > 20
