"""Measures the converter beside ``cp`` and NumPy copies of the same bytes, in the same run.

  python tests/bench/checkpoint/bench.py [--directory DIR] [--sizes 1 3 10] [--rounds 3] [--modelopt PYTHON]

Ratios are what counts: of the best of alternating rounds, since other work only adds time. DIR needs
room for the largest model three times. Memory is the peak of the process's own pages (RssAnon +
RssShmem), sampled every 10 ms; mapped files and the page cache do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from models import write_llama

PYTHON = Path(__file__).resolve().parents[3] / "python"
RESULTS: dict[str, dict[str, float]] = {}
Array = np.ndarray[Any, Any]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def own_memory(pid: int) -> int:
    """Bytes of a process's own pages; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(x.split()[1]) * 1024 for x in lines if x.startswith(("RssAnon", "RssShmem")))


def run(words: Sequence[str | Path]) -> tuple[float, int]:
    """Seconds and peak of own memory of a command."""
    start, peak, done = time.perf_counter(), [0], threading.Event()
    process = subprocess.Popen(words, cwd=PYTHON, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], own_memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    error = process.communicate()[1]
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{words}: {error.decode()[-2000:]}")
    return seconds, peak[0]


def convert(model: Path, out: Path, *options: str) -> tuple[float, int]:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    result = run([sys.executable, "-m", "enginix", "convert", str(model), "-o", str(out), *options])
    shutil.rmtree(out)
    return result


# From file to file through NumPy: what a conversion that computes nothing costs.
NUMPY_COPY = """
import sys, numpy as np
block, into = np.empty(1 << 20, np.uint8), np.empty(1 << 20, np.uint8)
with open(sys.argv[1], "rb", buffering=0) as source, open(sys.argv[2], "wb", buffering=0) as target:
    while n := source.readinto(block):
        np.copyto(into[:n], block[:n])
        target.write(into[:n])
"""


def copy(model: Path, out: Path, command: Sequence[str] = ("cp",)) -> float:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    seconds, _ = run([*command, str(model / "model.safetensors"), str(out / "model.safetensors")])
    shutil.rmtree(out)
    return seconds


def numpy_copy(model: Path, out: Path) -> float:
    return copy(model, out, (sys.executable, "-c", NUMPY_COPY))


def one_model(base: Path, name: str, rounds: int, options: Sequence[str]) -> None:
    """Conversion of ``base/model``, ``cp`` and NumPy's copy in turns."""
    model, out = base / "model", base / "out"
    copies, numpys, conversions, peaks = [], [], [], []
    for _ in range(rounds):
        copies.append(copy(model, out))
        numpys.append(numpy_copy(model, out))
        seconds, peak = convert(model, out, *options)
        conversions.append(seconds)
        peaks.append(peak)
    cp, plain, ours = min(copies), min(numpys), min(conversions)
    RESULTS[name] = {
        "cp": cp,
        "numpy": plain,
        "convert": ours,
        "ratio": cp / ours,
        "ratioNumpy": plain / ours,
        "memoryMB": max(peaks) / 1e6,
    }
    say(
        f"{name:<30} cp {cp:5.2f} s   NumPy {plain:5.2f} s   convert {ours:5.2f} s   "
        f"{cp / ours:4.2f} × cp, {plain / ours:4.2f} × NumPy's copy   memory {max(peaks) / 1e6:4.0f} MB"
    )


def against_cp(base: Path, gigabytes: float, rounds: int, variants: Sequence[Sequence[str]]) -> None:
    model = base / "model"
    shutil.rmtree(model, ignore_errors=True)
    write_llama(model, gigabytes)
    with (model / "model.safetensors").open("rb") as f:  # into the page cache, for both
        while f.read(1 << 24):
            pass
    for options in variants:
        one_model(base, f"{gigabytes:g} GB {' '.join(options)}".strip(), rounds, options)
    shutil.rmtree(model)


def best(work: Callable[[], object], rounds: int = 7) -> float:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def casts() -> None:
    """In memory, a block at a time as conversion does, against a NumPy copy of the same input bytes."""
    from enginix.checkpoint.numbers import cast, fp8_rescale, numpy_dtype
    from enginix.checkpoint.parallel import in_order, usable_threads
    from enginix.checkpoint.parts import CHUNK

    rng = np.random.default_rng(0)

    def measure(name: str, values: Array, made: int, work: Callable[[Array, Array], object]) -> None:
        step, into = CHUNK // values.itemsize, np.empty_like(values)
        plain = best(lambda: np.copyto(into, values))
        buffers = [np.empty(step * made, np.uint8) for _ in range(usable_threads())]

        def through(out: Array) -> Callable[[int], int]:
            def run_one(i: int) -> int:
                work(values[i : i + step], out)
                return 0

            return run_one

        def all_of(threads: int) -> float:
            workers = [through(b) for b in buffers[:threads]]
            return best(lambda: in_order(iter(range(0, len(values), step)), workers))

        one, every = all_of(1), all_of(len(buffers))
        size = values.nbytes
        RESULTS[name] = {"copyGBps": size / plain / 1e9, "GBps": size / one / 1e9, "ratio": plain / one}
        RESULTS[name] |= {"threads": len(buffers), "allGBps": size / every / 1e9, "allRatio": plain / every}
        say(
            f"{name:<30} {size / one / 1e9:5.2f} GB/s of input, {plain / one:4.2f} × a NumPy copy in memory; "
            f"{len(buffers)} threads {size / every / 1e9:5.2f} GB/s, {plain / every:4.2f} ×"
        )

    for source, target in (
        ("BF16", "F16"),
        ("F16", "BF16"),
        ("F32", "BF16"),
        ("F32", "F16"),
        ("BF16", "F32"),
        ("F16", "F32"),
    ):
        values = (rng.standard_normal(1 << 24) * 0.02).astype(np.float32).astype(numpy_dtype(source))
        to = numpy_dtype(target)
        measure(
            f"{source} → {target}",
            values,
            to.itemsize,
            lambda x, out, s=source, t=target, to=to: cast(x, s, t, out.view(to)),  # type: ignore[misc]
        )
    codes = rng.integers(0, 0x7F, 1 << 25, np.uint8)
    measure("FP8 rescaled", codes, 1, lambda x, out: fp8_rescale(x, 0.5, 0.7, out))


def fp8(base: Path, gigabytes: float, rounds: int) -> None:
    """Merging FP8 q, k and v on disk."""
    shutil.rmtree(base / "model", ignore_errors=True)
    write_llama(base / "model", gigabytes, fp8=True)
    one_model(base, f"{gigabytes:g} GB FP8", rounds, [])
    shutil.rmtree(base / "model")


MODELOPT = """
import sys, torch, transformers
from modelopt.torch.export import export_tensorrt_llm_checkpoint
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
export_tensorrt_llm_checkpoint(model, "llama", torch.bfloat16, sys.argv[2], 1, 1)
"""


def modelopt(base: Path, gigabytes: float, python: str) -> None:
    model = base / "model"
    shutil.rmtree(model, ignore_errors=True)
    write_llama(model, gigabytes)
    seconds, peak = run([python, "-c", MODELOPT, str(model), str(base / "out")])
    shutil.rmtree(base / "out")
    ours, own = convert(model, base / "out")
    RESULTS["ModelOpt"] = {
        "seconds": seconds,
        "memoryGB": peak / 1e9,
        "convert": ours,
        "convertMB": own / 1e6,
    }
    say(
        f"ModelOpt's export of {gigabytes:g} GB: {seconds:.1f} s and {peak / 1e9:.1f} GB of memory; "
        f"convert {ours:.1f} s and {own / 1e6:.0f} MB"
    )
    shutil.rmtree(model)


def start_up(rounds: int) -> None:
    words = [sys.executable, "-m", "enginix", "convert", "--help"]
    found = sorted(run(words)[0] for _ in range(4 * rounds))
    bare = sorted(run([sys.executable, "-c", "pass"])[0] for _ in range(4 * rounds))
    middle = len(found) // 2
    RESULTS["help"] = {"milliseconds": 1000 * found[middle], "bare": 1000 * bare[middle]}
    say(f"convert --help: {1000 * found[middle]:.0f} ms (python -c pass: {1000 * bare[middle]:.0f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, help="where to work (default: a temporary directory)")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1, 3, 10], help="GB of the models, for memory"
    )
    parser.add_argument("--main", type=float, default=3, help="GB of the model measured against cp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--modelopt", metavar="PYTHON", help="an interpreter with modelopt, to run its export"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        base = Path(name)
        start_up(args.rounds)
        casts()
        tp = [["--tensor-parallel", str(n)] for n in (2, 4, 8)]
        against_cp(base, args.main, args.rounds, [[], *tp, ["--dtype", "float16"]])
        for size in args.sizes:
            if size != args.main:
                against_cp(base, size, 1, [[]])
        fp8(base, args.main, args.rounds)
        if args.modelopt:
            modelopt(base, args.main, args.modelopt)
    if args.json:
        args.json.write_text(json.dumps(RESULTS, indent=1) + "\n")


if __name__ == "__main__":
    main()
