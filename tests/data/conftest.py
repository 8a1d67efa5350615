import pytest

from tests.data.official_files import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)
