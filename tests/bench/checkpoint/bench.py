"""Measures the converter beside ``cp`` and NumPy's copy of the bytes that it writes, in the same run.

  python tests/bench/checkpoint/bench.py [--directory DIR] [--sizes 1 3 10] [--rounds 3] [--modelopt PYTHON]

Ratios are what counts: of the best of alternating rounds, since other work only adds time. DIR needs
room for the largest model three times, and for the main one and two checkpoints of 8 ranks. Memory is
the peak of the process's own pages (RssAnon + RssShmem), sampled every 10 ms; mapped files and the page
cache do not count.
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
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from casts import casts

from models import write_llama

PYTHON = Path(__file__).resolve().parents[3] / "python"
RESULTS: dict[str, dict[str, float]] = {}


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
    """Seconds and own memory; ``out`` is left there."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    return run([sys.executable, "-m", "enginix", "convert", str(model), "-o", str(out), *options])


# From files to files through NumPy, by as many threads: what a conversion that computes nothing costs.
NUMPY_COPY = """
import os, sys, threading, numpy as np
from pathlib import Path
threads, source, target = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
target.mkdir()
tasks, lock, STEP = [], threading.Lock(), 1 << 20
for path in sorted(source.glob("*.safetensors")):
    size = path.stat().st_size
    read, write = os.open(path, os.O_RDONLY), os.open(target / path.name, os.O_WRONLY | os.O_CREAT)
    os.ftruncate(write, size)
    tasks += [(read, write, at) for at in range(0, size, STEP)]
waiting = iter(tasks)
def work():
    block, into = np.empty(STEP, np.uint8), np.empty(STEP, np.uint8)
    while True:
        with lock:
            task = next(waiting, None)
        if task is None:
            return
        n = os.preadv(task[0], [block], task[2])
        np.copyto(into[:n], block[:n])
        os.pwrite(task[1], into[:n], task[2])
workers = [threading.Thread(target=work) for _ in range(threads)]
for w in workers: w.start()
for w in workers: w.join()
"""


def copy(source: Path, target: Path, *command: str | Path) -> float:
    """Seconds that a command needs to copy a directory."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    seconds, _ = run([*command, source, target])
    shutil.rmtree(target)
    return seconds


def one_model(base: Path, name: str, rounds: int, options: Sequence[str]) -> None:
    """Conversion of ``base/model``, and copies of the checkpoint that it wrote, in turns."""
    from enginix.checkpoint.parallel import count_usable_threads

    model, out, made, copied = base / "model", base / "out", base / "made", base / "copied"
    convert(model, made, *options)
    size = sum(p.stat().st_size for p in made.iterdir())
    peaks: list[int] = []

    def conversion() -> float:
        seconds, peak = convert(model, out, *options)
        shutil.rmtree(out)
        peaks.append(peak)
        return seconds

    numpy = (sys.executable, "-c", NUMPY_COPY, str(count_usable_threads()))
    ways = [conversion, lambda: copy(made, copied, "cp", "-r"), lambda: copy(made, copied, *numpy)]
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds):
        for way in range(turn, turn + len(ways)):  # each is first, second and last in turn
            seconds[way % len(ways)].append(ways[way % len(ways)]())
    shutil.rmtree(made)
    ours, cp, plain = map(min, seconds)
    RESULTS[name] = {
        "GB": size / 1e9,
        "cp": cp,
        "numpy": plain,
        "convert": ours,
        "ratio": cp / ours,
        "ratioNumpy": plain / ours,
        "memoryMB": max(peaks) / 1e6,
    }
    say(
        f"{name:<30} {size / 1e9:5.2f} GB   cp {cp:5.2f} s   NumPy {plain:5.2f} s   convert {ours:5.2f} s   "
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
    shutil.rmtree(base / "out")
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
        casts(RESULTS, say)
        tp = [["--tensor-parallel", str(n)] for n in (2, 4, 8)]
        dtypes = [["--dtype", "float16"], ["--dtype", "float32"]]
        against_cp(base, args.main, args.rounds, [[], *tp, *dtypes])
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
