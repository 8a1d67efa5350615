"""Files are found or missed by name, and written whole or not at all."""

import errno
import os

import pytest

from vlm_lite import files
from vlm_lite.files import UserError


def test_a_missing_file_of_the_course_is_named_with_the_way_to_get_it():
    with pytest.raises(UserError, match=r"nothing-here.*git checkout -- data"):
        files.data_path("zoo", "nothing-here")


def test_a_home_that_cannot_be_written_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(UserError, match="Set VLM_LITE_HOME"):
        files.home()


def test_malformed_json_is_named_with_line_and_column(tmp_path):
    (tmp_path / "cut.json").write_text('{"images": [\n  {"id": 1')
    with pytest.raises(UserError, match=r"cut.json, line 2 column \d+"):
        files.read_json(tmp_path / "cut.json")
    with pytest.raises(UserError, match="does not exist"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
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


def test_a_cut_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    with files.atomic_dir(tmp_path / "kept") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(UserError, match="No space left"):
        with files.atomic_dir(tmp_path / "kept") as folder:
            (folder / "a").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "kept" / "a").read_text() == "old" and os.listdir(tmp_path) == ["kept"]
