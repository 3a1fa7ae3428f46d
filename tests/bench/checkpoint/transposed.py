"""Measures conversion of GPT-2's transposed matrices beside ``cp`` of the same bytes, in under a minute.

  python tests/bench/checkpoint/transposed.py [--directory DIR] [--megabytes 400] [--rounds 3]

Clock and processor time are the least of alternating rounds; a ratio is cp's time by the conversion's. The
clock counts on a quiet machine alone. Memory is the peak of the process's own pages (RssAnon).
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
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from enginix.checkpoint.convert import ConvertOptions, derive_conversion_spec
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.write import write_ranks

VOCABULARY = 512  # the embedding is copied, and would hide the rest


def write_gpt2(directory: Path, width: int, size: int) -> None:
    """Write a random GPT-2 in float16 whose layers hold about ``size`` bytes."""
    layers = max(1, size // (24 * width * width))
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (VOCABULARY, width), "wpe.weight": (64, width)}
    for layer in range(layers):
        matrices = {"attn.c_attn": 3 * width, "attn.c_proj": width, "mlp.c_fc": 4 * width}
        shapes |= {f"h.{layer}.{name}.weight": (width, out) for name, out in matrices.items()}
        shapes |= {f"h.{layer}.{name}.bias": (out,) for name, out in matrices.items()}
        shapes |= {f"h.{layer}.mlp.c_proj.weight": (4 * width, width), f"h.{layer}.mlp.c_proj.bias": (width,)}
        shapes |= {f"h.{layer}.ln_{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")}
    shapes |= {f"ln_f.{leaf}": (width,) for leaf in ("weight", "bias")}
    directory.mkdir()
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": width, "n_layer": layers,
        "n_head": width // 64, "n_positions": 64, "vocab_size": VOCABULARY, "dtype": "float16",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[f"transformer.{name}"] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    block = np.random.default_rng(0).integers(0, 0x3C00, 1 << 23, dtype=np.uint16).tobytes()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for begin in range(0, end, len(block)):
            file.write(block[: min(len(block), end - begin)])


def measure_times(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the clock and of the processor, those of ended children included."""
    begin, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return time.perf_counter() - begin, sum(after[:4]) - sum(before[:4])


def watch_memory(peak: list[int], done: threading.Event) -> None:
    """Keep the largest RssAnon of this process, in bytes."""
    while not done.wait(0.01):
        text = Path("/proc/self/status").read_text()
        peak[0] = max(peak[0], int(text.split("RssAnon:")[1].split()[0]) * 1024)


def measure_width(work: Path, width: int, size: int, rounds: int, ranks: int) -> None:
    model, out = work / f"model-{width}", work / "out"
    if not model.exists():
        write_gpt2(model, width, size)
    spec = derive_conversion_spec(model, ConvertOptions(mapping=CheckpointMapping(ranks)))
    least: dict[str, tuple[float, float]] = {}

    def convert() -> None:
        write_ranks(out, spec.ranks)

    def copy() -> None:
        subprocess.run(["cp", model / "model.safetensors", out / "copy"], check=True)

    for _ in range(rounds):
        for name, function in (("cp", copy), ("convert", convert)):
            out.mkdir()
            times = measure_times(function)
            shutil.rmtree(out)
            last = least.get(name, times)
            least[name] = (min(last[0], times[0]), min(last[1], times[1]))
    (clock, processor), (cp_clock, cp_processor) = least["convert"], least["cp"]
    sys.stdout.write(
        f"width {width}, {ranks} rank{'s' * (ranks > 1)}: {clock:.2f} s by the clock "
        f"({cp_clock / clock:.2f} x cp), {processor:.2f} s of processors ({cp_processor / processor:.2f} x)\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    peak, done = [0], threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(peak, done))
    watcher.start()
    try:
        with tempfile.TemporaryDirectory(dir=args.directory) as work:
            for width in (1600, 5120):
                for ranks in (1, 4) if width == 5120 else (1, 5):
                    measure_width(Path(work), width, args.megabytes * 10**6, args.rounds, ranks)
    finally:
        done.set()
        watcher.join()
    sys.stdout.write(f"peak memory {peak[0] / 1e6:.0f} MB\n")


if __name__ == "__main__":
    main()
