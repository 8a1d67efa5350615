import pytest

from tests.evals.official import make_files


@pytest.fixture
def files(tmp_path):
    return make_files(tmp_path)
