#!/usr/bin/env python3
"""Times the reference executor on a CPU: tiny-qwen3 and a model of Qwen3-0.6B's shape, in float32.

    PYTHONPATH=python python3 tests/bench/reference/bench.py
    PYTHONPATH=python python3 tests/bench/reference/bench.py --against COMMIT [--rounds 3] [--most RATIO]

With ``--against``, both commits run in turn, each time in a process of its own, which is first by turns; the
table has processor seconds, least of all rounds, and their ratio. Status 1 where a ratio is above ``--most``.
About 4 minutes on two quiet cores. ENGINIX_LAYERS=N makes the larger model shallower.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BATCH = 8
# Tokens of a prompt, decoded alone, and decoded in a batch: by model.
LENGTHS = {"tiny-qwen3": (1024, 512, 256), "0.6B shape": (64, 8, 4)}


def time_step(call: Callable[[], Any]) -> float:
    """Return processor seconds, the least of three."""
    spent = []
    for _ in range(3):
        started = time.process_time()
        call()
        spent.append(time.process_time() - started)
    return min(spent)


def measure_model(executor: Any, name: str) -> dict[str, float]:
    """Return processor seconds of prefill, decode alone and in a batch."""
    length, alone, together = LENGTHS[name]
    prompt = [(31 * i + 7) % 2000 for i in range(length)]
    executor.greedy(prompt[:8], 2)

    def decode_batch() -> None:
        cache = executor.new_cache(BATCH)
        for slot in range(BATCH):
            executor.prefill(cache, slot, prompt[: 8 + slot])
        for step in range(together):
            executor.decode(cache, {slot: step + slot for slot in range(BATCH)})

    return {
        f"{name}, prefill of {length}": time_step(lambda: executor.greedy(prompt, 1)),
        f"{name}, {alone} decoded": time_step(lambda: executor.greedy(prompt[:16], alone)),
        f"{name}, {together} decoded in a batch of {BATCH}": time_step(decode_batch),
    }


def measure_tree(root: Path) -> dict[str, float]:
    """Return processor seconds of each step, by the code in ``root``."""
    sys.path[:0] = [str(root / "python"), str(root / "tests/gpu")]
    import torch

    import models
    from enginix.reference.executor import Executor

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tiny_name, shaped_name = LENGTHS
    with tempfile.TemporaryDirectory() as work:
        tiny = models.tiny_qwen3(ROOT / "tests/models/tiny-qwen3", Path(work, "tiny"))
        spent = measure_model(Executor.load(tiny, "cpu", "float32"), tiny_name)
        shape = dict(models.QWEN3_0_6B)
        shape["num_hidden_layers"] = int(os.environ.get("ENGINIX_LAYERS", shape["num_hidden_layers"]))
        shaped = models.random_checkpoint(Path(work, "shaped"), "Qwen3ForCausalLM", **shape)
        return spent | measure_model(Executor.load(shaped, "cpu", "float32"), shaped_name)


def run_child(root: Path) -> dict[str, float]:
    """Measure a tree in a process of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--tree", str(root)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def format_table(least: dict[str, dict[str, float]]) -> str:
    new, old = least["here"], least.get("before")
    if old is None:
        return "\n".join(f"{what}: {value:.2f} s" for what, value in new.items()) + "\n"
    lines = ["| processor seconds, least | before | here | here / before |", "|---|---|---|---|"]
    lines += [f"| {what} | {old[what]:.2f} | {new[what]:.2f} | {new[what] / old[what]:.2f} |" for what in new]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure this tree, and another in turns with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=float, default=1.05)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tree is not None:
        sys.stdout.write(json.dumps(measure_tree(args.tree)) + "\n")
        return 0
    if args.against is None:
        sys.stdout.write(format_table({"here": run_child(ROOT)}))
        return 0
    least: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as work:
        other = Path(work, "tree")
        subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(other)], check=True)
        subprocess.run(["git", "checkout", "-q", args.against], cwd=other, check=True)
        for number in range(args.rounds):
            pair = [("here", ROOT), ("before", other)]
            for name, root in pair if number % 2 else reversed(pair):
                for what, value in run_child(root).items():
                    row = least.setdefault(name, {})
                    row[what] = min(value, row.get(what, value))
    sys.stdout.write(format_table(least))
    return int(any(least["here"][what] / least["before"][what] > args.most for what in least["here"]))


if __name__ == "__main__":
    sys.exit(main())
