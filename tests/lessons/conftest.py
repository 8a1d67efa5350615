"""Each test has a folder of its own for what it makes, and computes as a plain CPU does."""

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setenv("VLM_LITE_CPU", "plain")
    return tmp_path
