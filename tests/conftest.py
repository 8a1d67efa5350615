"""The tests run in the tiny world, offline, on two threads, and leave nothing in the user's cache folder."""

import atexit
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
