"""Measures the export for TensorRT Edge-LLM: NVIDIA's exporter alone, and with enginix's checks.

  python tests/bench/edgellm/bench.py [--directory DIR] [--sizes 0.1 0.5 1.5] [--rounds 2]

Random Qwen3 models of the given weights in GB (10^9 bytes, bfloat16), made on the fly and removed. What
counts are ratios within one run, and how they grow: seconds a GB, peak memory over the weights, what the
checks add. Memory is the peak of the processes' own pages (RssAnon + RssShmem), sampled every 20 ms;
mapped files do not count. Runs alternate, and the best of each is taken, since other work on the machine
only adds. DIR needs room for twice the largest model and memory for about twice.
"""

from __future__ import annotations

import argparse
import itertools
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

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests"))
from environments import MissingEnvironment, environment  # noqa: E402

TINY = ROOT / "tests/models/tiny-qwen3"
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def exporter_python() -> Path:
    return environment("edgellm") / "bin" / "python3"


def write_model(out: Path, gigabytes: float) -> int:
    """A Qwen3 model of 8 layers whose width makes the size; returns the bytes of its weights."""
    config = json.loads((TINY / "config.json").read_text())
    layers, vocabulary = 8, config["vocab_size"]
    # Elements: a layer has 12 h² (intermediate size 3h, half as many key-value heads), the table is small.
    hidden = round((gigabytes * 1e9 / 2 / (layers * 12)) ** 0.5 / 128) * 128
    heads = hidden // 64
    config.update(hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, head_dim=64)
    config.update(num_attention_heads=heads, num_key_value_heads=heads // 2, max_window_layers=layers)
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    for name in COPIED:
        if (TINY / name).exists():
            shutil.copyfile(TINY / name, out / name)
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns), np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    def ones(n: int) -> np.ndarray:
        return (1 + rng.standard_normal(n, np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    weight_map: dict[str, str] = {}
    total = 0

    def shard(name: str, tensors: dict[str, np.ndarray]) -> None:
        nonlocal total
        save_file(tensors, out / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(t.nbytes for t in tensors.values())

    shard(
        "table.safetensors",
        {"model.embed_tokens.weight": matrix(vocabulary, hidden), "model.norm.weight": ones(hidden)},
    )
    for i in range(layers):
        half = hidden // 2
        p = f"model.layers.{i}."
        shard(
            f"layer-{i}.safetensors",
            {
                p + "input_layernorm.weight": ones(hidden),
                p + "post_attention_layernorm.weight": ones(hidden),
                p + "self_attn.q_norm.weight": ones(64),
                p + "self_attn.k_norm.weight": ones(64),
                p + "self_attn.q_proj.weight": matrix(hidden, hidden),
                p + "self_attn.k_proj.weight": matrix(half, hidden),
                p + "self_attn.v_proj.weight": matrix(half, hidden),
                p + "self_attn.o_proj.weight": matrix(hidden, hidden),
                p + "mlp.gate_proj.weight": matrix(3 * hidden, hidden),
                p + "mlp.up_proj.weight": matrix(3 * hidden, hidden),
                p + "mlp.down_proj.weight": matrix(hidden, 3 * hidden),
            },
        )
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


def tree(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += tree(int(child))
    return found


def own_memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(x.split()[1]) * 1024 for x in lines if x.startswith(("RssAnon", "RssShmem")))


def run(words: Sequence[str | Path]) -> tuple[float, int]:
    """Seconds and peak of own memory of a command and its children."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "python"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    start, peak, done = time.perf_counter(), [0], threading.Event()
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], sum(map(own_memory, tree(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    error = process.communicate()[1]
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{words}: {error.decode()[-2000:]}")
    return seconds, peak[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory", type=Path, help="where the models go (default: the temporary directory)"
    )
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.5, 1.5], metavar="GB")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    try:
        python = exporter_python()
    except MissingEnvironment as error:
        say(f"skipped: {error}")
        return
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory(prefix="bench-edgellm-", dir=args.directory) as place:
            root = Path(place)
            weights = write_model(root / "model", size)
            best: dict[str, tuple[float, int]] = {}
            for _ in range(args.rounds):
                for name, words in {
                    "exporter": [python.parent / "tensorrt-edgellm-export", root / "model", root / "out"],
                    "enginix": [
                        python,
                        "-m",
                        "enginix",
                        "edgellm-export",
                        root / "model",
                        "-o",
                        root / "out",
                    ],
                }.items():
                    seconds, memory = run(words)
                    shutil.rmtree(root / "out")
                    before = best.get(name, (seconds, memory))
                    best[name] = (min(before[0], seconds), min(before[1], memory))
        alone, ours = best["exporter"], best["enginix"]
        rows.append({"weights": weights, "exporter": alone, "enginix": ours})
        say(
            f"{weights / 1e9:.2f} GB: exporter {alone[0]:.1f} s, {alone[1] / 1e9:.2f} GB"
            f" ({alone[1] / weights:.1f}× weights); with checks {ours[0]:.1f} s ({ours[0] / alone[0]:.2f}×),"
            f" {ours[1] / 1e9:.2f} GB ({ours[1] / alone[1]:.2f}×)"
        )
    for name in ("exporter", "enginix"):
        for small, large in itertools.pairwise(rows):
            by = large["weights"] / small["weights"]
            time_by, memory_by = (large[name][i] / small[name][i] for i in (0, 1))
            say(f"{name}: weights ×{by:.1f} → seconds ×{time_by:.1f}, memory ×{memory_by:.1f}")
    say(json.dumps(rows))


if __name__ == "__main__":
    main()
