"""Files are found or missed by name, and written whole or not at all."""

import errno
import gzip
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.small import refused
from vlm_lite import files
from vlm_lite.files import UserError


def test_a_missing_file_of_the_course_is_named_with_the_way_to_get_it():
    with refused(r"nothing-here.*git checkout -- data"):
        files.data_path("zoo", "nothing-here")


def test_a_home_that_cannot_be_written_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path / "file" / "home"))
    with refused("Set VLM_LITE_HOME"):
        files.home()


def test_malformed_json_is_named_with_line_and_column(tmp_path):
    (tmp_path / "cut.json").write_text('{"images": [\n  {"id": 1')
    with refused(r"cut.json, line 2 column \d+"):
        files.read_json(tmp_path / "cut.json")
    with refused("does not exist"):
        files.read_json(tmp_path / "none.json")
    with refused("cannot be read"):
        files.read_json(tmp_path)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_cut_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "kept.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        with files.atomic_write(target, "w") as file:
            file.write("half")
            raise error
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["kept.txt"]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    files.write_json(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "1\n"
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        files.write_json(tmp_path / "pipe", 2)
        assert read.result() == "2\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


def test_a_cut_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    with files.atomic_dir(tmp_path / "kept") as folder:
        (folder / "a").write_text("old")
    with refused("No space left"):
        with files.atomic_dir(tmp_path / "kept") as folder:
            (folder / "a").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "kept" / "a").read_text() == "old" and os.listdir(tmp_path) == ["kept"]


def test_json_lines_where_json_is_expected_are_read_and_said_in_a_line(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"id": 1}\r\n\r\n{"id": 2}\n')
    assert files.read_json(tmp_path / "a.json") == [{"id": 1}, {"id": 2}]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a.json" in said and "JSON lines" in said
    (tmp_path / "a.json").write_text('{"id": 1}\n{"id": 2\n')
    with refused(r"a.json, line 2: not valid JSON"):
        files.read_json(tmp_path / "a.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(
    st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=2, max_size=4),
    st.sampled_from(
        "utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be".split()
    ),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.sampled_from([bytes, gzip.compress]),
)
def test_any_list_is_the_same_as_a_list_and_as_lines(tmp_path, rows, encoding, newline, pack):
    for text in (json.dumps(rows), newline.join(map(json.dumps, rows))):
        (tmp_path / "a.json").write_bytes(pack(text.encode(encoding)))
        assert files.read_json(tmp_path / "a.json") == rows


@pytest.mark.parametrize("end", [5, 15, 25, -9])
def test_a_compressed_file_that_is_cut_short_is_named(tmp_path, end):
    (tmp_path / "a.json").write_bytes(gzip.compress(b'{"id": 1}' * 9)[:end])
    with refused("a.json cannot be read"):
        files.read_json(tmp_path / "a.json")


@given(st.text(max_size=100), st.integers(0, 100_000), st.text(max_size=100))
def test_a_message_of_any_length_is_cut_in_the_middle(start, length, end):
    message = str(UserError(start + "k" * length + end))
    assert len(message) < 600 and message.startswith(start) and message.endswith(end)
    if len(start) + length + len(end) < 560:
        assert message == start + "k" * length + end


@given(JSON)
def test_a_value_is_shown_in_sixty_characters_in_one_line(value):
    assert len(files.show(value)) <= 60 and len(files.show(value).splitlines()) == 1


@pytest.mark.parametrize(
    "value", ["k" * 10**7, list(range(10**6)), {"k" * 10**6: {"x": [1] * 10**6}}]
)
def test_a_huge_value_is_shown_at_once(value):
    started = time.perf_counter()
    assert len(files.show(value)) <= 60
    assert time.perf_counter() - started < 0.5
