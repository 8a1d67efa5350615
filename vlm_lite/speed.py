"""How fast this CPU multiplies, and what that makes of the recorded times of the course.

`data/times.json` holds a column for each kind of CPU, "plain" (fp32) and "bf16", as `make course ALL=1 RECORD=1`,
`make check RECORD=1` and `make test RECORD=1` measured it on two cores with nothing else running.
"""

import time

from vlm_lite.files import data_path, read_json

SIZE = 512  # of the square matrices that are multiplied
SLOWER = 0.85  # of the recorded rate: from here on a machine is told that it takes longer


def matmul_rate(dtype, seconds=0.4):
    """GFLOP/s (10^9) of this CPU in products of `dtype`, on torch's threads: the best of those within `seconds`."""
    import torch

    a, b = torch.randn(2, SIZE, SIZE).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * SIZE**3 / best / 1e9


def kind_of_cpu(compute):
    """The column of the recorded times that a `profiles.Compute` reads: "bf16" or "plain"."""
    return "bf16" if compute.mixed_precision == "bf16" else "plain"


def recorded_times():
    """{"plain": {"cpu", "date", "gflops", "seconds": {name: s}, "memory_mb": {name: MB}}, "bf16": ..., "t4_minutes"}."""
    return read_json(data_path("times.json"))


def rate_of(compute):
    """GFLOP/s of this CPU in the precision that the course takes on it."""
    import torch

    return matmul_rate(torch.bfloat16 if kind_of_cpu(compute) == "bf16" else torch.float32)


def slowdown(compute):
    """(factor of 1 or more by which this CPU is slower than the recorded one of its kind, its GFLOP/s, the recorded)."""
    rate, recorded = rate_of(compute), recorded_times()[kind_of_cpu(compute)]["gflops"]
    return (recorded / rate if rate < SLOWER * recorded else 1.0), rate, recorded
