"""Casts and the FP8 merge beside NumPy's copy of the same bytes, in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def casts(results: dict[str, dict[str, float]], say: Callable[[str], None]) -> None:
    """From memory, more than the caches hold, a block at a time into the buffer that conversion would write.

    Beside it NumPy's copy of the same input in the same way, by the same threads, in turns. The ratio is
    of the input's bytes a second.
    """
    from enginix.checkpoint import compiled_casts
    from enginix.checkpoint.byte_sources import CHUNK
    from enginix.checkpoint.numbers import cast_floats, rescale_fp8
    from enginix.checkpoint.parallel import count_usable_threads, run_in_order
    from enginix.model.mapped_tensors import numpy_dtype

    rng = np.random.default_rng(0)
    say(f"casts are {'compiled' if compiled_casts.find_compiled_casts() else 'NumPy'}")

    def measure(name: str, values: Array, to: Any, work: Callable[[Array, Array], object]) -> None:
        step = CHUNK // values.itemsize

        def worker(what: str) -> Callable[[int], int]:
            into = np.empty(step, to if what == "cast" else values.dtype)

            def run_one(at: int) -> int:
                part = values[at : at + step]
                if what == "cast":
                    work(part, into[: len(part)])
                else:
                    np.copyto(into[: len(part)], part)
                return 0

            return run_one

        for threads in sorted({1, count_usable_threads()}):
            found = {"cast": 0.0, "copy": 0.0}
            workers = {what: [worker(what) for _ in range(threads)] for what in found}
            for _ in range(40):
                for what in found:  # in turns, so that other work meets both
                    start = time.perf_counter()
                    run_in_order(iter(range(0, len(values), step)), workers[what])
                    speed = values.nbytes / (time.perf_counter() - start) / 1e9
                    found[what] = max(found[what], speed)
            ours, plain = found["cast"], found["copy"]
            results[f"{name} x {threads}"] = {"GBps": ours, "copyGBps": plain, "ratio": ours / plain}
            say(
                f"{name:<14} x {threads}   {ours:5.1f} GB/s, NumPy's copy {plain:5.1f}: {ours / plain:4.2f} ×"
            )

    for source, target in (
        ("BF16", "F16"),
        ("F16", "BF16"),
        ("F32", "BF16"),
        ("F32", "F16"),
        ("BF16", "F32"),
        ("F16", "F32"),
    ):
        dtype = numpy_dtype(source)
        values = (
            (rng.standard_normal(1 << 26 >> (dtype.itemsize // 2)) * 0.02).astype(np.float32).astype(dtype)
        )
        measure(
            f"{source} → {target}",
            values,
            numpy_dtype(target),
            lambda x, y, s=source, t=target: cast_floats(x, s, t, y),
        )  # type: ignore[misc]
    codes = rng.integers(0, 0x7F, 1 << 27, np.uint8)
    measure("FP8 rescaled", codes, np.uint8, lambda x, y: rescale_fp8(x, 0.5, 0.7, y))
