"""The tests run in the tiny world, offline, on two threads, and leave nothing in the user's cache folder."""

import atexit
import functools
import os
import shutil
import signal
import sys
import tempfile

_HOME = tempfile.mkdtemp(prefix="vlm-lite-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

# Set when pytest loads this file, before anything imports torch or the hub's client; notebooks' kernels inherit it.
os.environ["VLM_LITE_PROFILE"] = "tiny"
os.environ["VLM_LITE_HOME"] = os.path.join(_HOME, "home")
os.environ["HF_DATASETS_CACHE"] = os.path.join(_HOME, "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
# A shell starts what runs in the background with Ctrl-C ignored; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402  after the environment is set
from hypothesis import HealthCheck, settings  # noqa: E402

# A slow machine is no bug, and a test's own folder may be written to by every example.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def own_precision():
    """Accelerate keeps one precision a process, as a notebook does; here each test begins without one."""
    yield
    state = sys.modules.get("accelerate.state")
    if state and state.AcceleratorState._shared_state:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def pytest_collection_modifyitems(items):
    """Run together with the tests, companion notebooks (00b, 07c) are on `smoke`; alone, every notebook is on `tiny`.

    Their saved runs are of their present code on `tiny`, which test_notebooks.py sees to.
    """
    for item in items:
        if item.path.suffix == ".ipynb" and item.path.name[2] != "_":
            item.runtest = functools.partial(on_smoke, item.runtest)


def on_smoke(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_LITE_PROFILE", "smoke")
        run()
