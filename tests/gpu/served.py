#!/usr/bin/env python3
"""The reference executor on a GPU behind the real tritonserver: a table, and status 1 when a line fails.

  PYTHONPATH=python python3 tests/gpu/served.py [--tritonserver DIRECTORY] [--python FILE]

By default it takes the environments of tests/hostpkgs. A machine that has PyTorch, a GPU and no network gets
both from tests/gpu/pack_served.py: OUT/python/bin/python3 runs this and the models.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "faults")]

from setting import Setting  # noqa: E402

from enginix.kinds.triton_repository.repository import build_triton_repository  # noqa: E402
from enginix.rollout import memory_headroom  # noqa: E402
from enginix.serve.client import TritonClient  # noqa: E402
from enginix.triton.options import RepositoryOptions  # noqa: E402

PROMPTS = [f"Once upon a time there were {n} foxes, and" for n in range(16)]
FAILED: list[str] = []


def line(what: str, holds: bool, figure: str = "") -> None:
    sys.stdout.write(f"{'ok  ' if holds else 'FAIL'}  {what:<72} {figure}\n")
    sys.stdout.flush()
    if not holds:
        FAILED.append(what)


def whole(client: TritonClient, prompt: str) -> str:
    found = client.generate("ensemble", {"text_input": prompt, "max_tokens": 48, "end_id": -1})
    return str(found["text_output"])


def together(client: TritonClient) -> list[str]:
    """All prompts as streams at once; the pieces of each, joined."""
    texts = [""] * len(PROMPTS)

    def one(n: int) -> None:
        request = {"text_input": PROMPTS[n], "max_tokens": 48, "end_id": -1, "stream": True}
        texts[n] = "".join(str(p["text_output"]) for p in client.stream("ensemble", request))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return texts


def main() -> int:
    """All lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tritonserver", type=Path, metavar="DIRECTORY")
    parser.add_argument("--python", type=Path, metavar="FILE", help="python3 of the models")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enginix-gpu-") as directory:
        setting = Setting(Path(directory), tritonserver=args.tritonserver, python=args.python)
        with setting.serve() as served:
            on_cpu = [whole(served.client, p) for p in PROMPTS]
        shutil.rmtree(setting.repository)
        options = RepositoryOptions(max_batch_size=16, device="cuda")
        build_triton_repository(setting.directory / "engine", setting.repository, options)
        start = time.perf_counter()
        with setting.serve("--gpus", "0") as served:
            line("it answers, on the GPU", True, f"after {time.perf_counter() - start:.1f} s")
            words = (Path("/proc") / str(served.child("tensorrt_llm")) / "maps").read_text()
            line("the executor's process has CUDA's driver loaded", "libcuda.so" in words)
            front = (Path("/proc") / str(served.child("/ensemble/")) / "maps").read_text()
            line("ensemble's process has no PyTorch", "libtorch" not in front)
            alone = [whole(served.client, p) for p in PROMPTS]
            same = sum(a == b for a, b in zip(alone, on_cpu, strict=True))
            line("16 texts of 48 tokens are those of the CPU (float32)", same >= 15, f"{same} of 16")
            streamed = together(served.client)
            same = sum(a == b for a, b in zip(streamed, alone, strict=True))
            line("16 streams at once get what each gets alone", same >= 15, f"{same} of 16")
            fits, more = (
                memory_headroom.measure_gpu_headroom(["0"], 1024),
                memory_headroom.measure_gpu_headroom(["0"], 1 << 30),
            )
            holds = fits.is_enough and not more.is_enough
            line("a trial of 1 GiB has room beside it, one of a PiB has none", holds, str(fits))
        line("nothing is left of it", True)
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
