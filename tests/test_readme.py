"""What README.md, docs/ and data/README.md say is so: their commands exist, their examples run, and so on."""

import re
import shlex

import pytest
from PIL import Image

from tools import notebooks, readme_gif
from vlm_lite.cli import ZOO, build_parser
from vlm_lite.lessons import world

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


def prose(page):
    """What is neither generated nor code."""
    text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", PAGES[page], flags=re.S)
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def make_targets():
    return set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
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
    slug, _ = notebooks.repository()
    others = ["git clone", f"cd {slug.split('/')[1]}", "pip install", "docker build", "docker run"]
    for words in commands(ALL):
        assert words[0] in ("make", "vlm-lite", ".venv/bin/vlm-lite", "torchrun", "mkdir") or (
            " ".join(words[:2]) in others
        )
        if words[:2] == ["git", "clone"]:
            assert words[2] == f"https://github.com/{slug}"
        if words[:2] == ["docker", "build"]:
            assert (ROOT / words[words.index("-f") + 1]).is_file()
        assert words[:2] != ["docker", "run"] or "none" in words  # no network for students' code


def test_the_studies_and_checkpoints_that_the_pages_name_are_those_there_are():
    from vlm_lite.studies import STUDIES

    studies = {words[2] for words in commands(ALL) if words[1:2] == ["study"]}
    named = re.findall(r"^\| `(shapes-\w+)` \|", PAGES["data/README.md"], flags=re.M)
    assert studies - {"NAME"} <= set(STUDIES) and set(named) == set(ZOO)


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
    units = "%|percent|points?|s|seconds?|min|minutes?|KB|MB|GB|times"
    assert re.findall(rf"\d[\d.,]*\s?(?:{units})\b", prose(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_paragraph_has_at_most_80_words(page):
    paragraphs = re.split(r"\n\s*\n|\n(?=[|#]|- |\d+\. )", prose(page))
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
        world.SHAPES,
        world.COLOURS,
        world.SIZES,
        sorted(" ".join(pair) for pair in world.HELD_OUT),
    ):
        assert f"({', '.join(words)})" in card
    assert (
        f"{world.IMAGE_SIZE} pixels wide" in card
        and f"{world.GRID} rows and {world.GRID} columns" in card
    )
    _, targets, pools = world.read_digits()
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
