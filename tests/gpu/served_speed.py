#!/usr/bin/env python3
"""Times streams behind tritonserver and the same requests in process, in turns: tokens a second, and ratio.

    python3 tests/gpu/served_speed.py [--tritonserver DIRECTORY] [--python FILE] [--json FILE]

An engine of kind reference with the shape of Qwen3-0.6B, random weights in bfloat16 and a tokenizer of as
many tokens, on a GPU; prompts of 128 tokens, 128 tokens answered. In process is the executor behind its
scheduler, from text to text; served are as many HTTP streams of the ensemble. The client runs on the same
machine. Beside them stands a model that does nothing in the same server. ``--standin`` is a small shape on
the CPU, to try this script. tests/gpu/pack_served.py brings a tritonserver to a machine without a network.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for place in ("python", "tests/faults", "tests/bench/serving", "tests/gpu"):
    sys.path.insert(0, str(ROOT / place))

import bare  # noqa: E402
import torch  # noqa: E402
from setting import MODEL, Served, Setting  # noqa: E402

import bench  # noqa: E402
import models  # noqa: E402
from enginix.kinds.reference import reference_build  # noqa: E402
from enginix.kinds.reference.reference_build import (  # noqa: E402
    ReferenceBuildOptions,
    build_reference_engine,
)
from enginix.kinds.triton_repository.repository import build_triton_repository  # noqa: E402
from enginix.triton.options import RepositoryOptions  # noqa: E402

LENGTH, FURTHER = 128, 128
AIM = 0.9
# Of a server's processes, by a word of their command lines.
PARTS = {"tensorrt_llm": "/tensorrt_llm/", "ensemble": "/ensemble/", "tritonserver": "bin/tritonserver"}


def write_model(out: Path, vocab_size: int) -> Path:
    """Write tiny-qwen3 with a tokenizer of more tokens: each further one is a word of its own."""
    shutil.copytree(MODEL, out)
    path = out / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first = 1 + max([*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])])
    vocabulary |= {f"\u0120w{number}": number for number in range(first, vocab_size)}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    return out


def build_engine(work: Path, device: str) -> Path:
    """Build the engine, without gates."""
    shape = models.shape(models.QWEN3_0_6B, device)
    checkpoint = models.random_checkpoint(work / "checkpoint", "Qwen3ForCausalLM", device, **shape)
    model = write_model(work / "model", shape["vocab_size"])
    # Random weights nearly tie: in bfloat16 a longer answer is not that of float32, which is kept.
    reference_build.GOLDEN_TOKENS = 4
    options = ReferenceBuildOptions(name="shape", gated=False, link_checkpoint=True, device=device)
    build_reference_engine(checkpoint, model, work / "engine", options)
    return work / "engine"


def list_prompts(inside: bench.InProcess, count: int) -> list[str]:
    """Return different texts of about LENGTH tokens."""
    found = []
    for number in range(count):
        ids = inside.tokenizer.encode(f"{number} {bench.TEXT * 8}").ids
        assert len(ids) >= LENGTH
        found.append(inside.tokenizer.decode(ids[:LENGTH]))
    return found


def list_processor_times(served: Served) -> dict[str, float]:
    """Return seconds of processor time of each part of a server."""
    children = served.children()
    return {
        name: bench.processor([pid for pid, line in children.items() if word in line])
        for name, word in PARTS.items()
    }


def estimate_interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median, by resampling."""
    drawn = random.Random(0)
    medians = sorted(statistics.median(drawn.choices(values, k=len(values))) for _ in range(4000))
    return medians[100], medians[-101]


def measure_streams(
    inside: bench.InProcess, served: Served, count: int, rounds: int, deadline: float
) -> dict[str, Any]:
    """Measure all three in turns, after two rounds that count nothing; fewer rounds where time ends."""
    port = int(served.client.url.rsplit(":", 1)[1])
    prompts = list_prompts(inside, count)
    runs = {
        "in process": lambda: inside.run(prompts, FURTHER),
        "served": lambda: bench.streams(port, prompts, FURTHER),
        "nothing": lambda: bench.streams(port, prompts, FURTHER, bare.NAME),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(PARTS, 0.0)
    for number in range(-2, rounds):
        if number > 0 and time.monotonic() > deadline:
            break
        names = list(runs) if number % 2 else list(runs)[::-1]
        for name in names:
            before = list_processor_times(served)
            took = runs[name]()
            if number >= 0:
                seconds[name].append(took)
                if name == "served":
                    after = list_processor_times(served)
                    spent = {part: spent[part] + after[part] - before[part] for part in PARTS}
    tokens = count * FURTHER
    ratios = [a / b for a, b in zip(seconds["in process"], seconds["served"], strict=True)]
    low, high = estimate_interval(ratios)
    return {
        "streams": count,
        "prompt": len(inside.tokenizer.encode(prompts[-1]).ids),
        "rounds": len(ratios),
        "tokens a second": {name: tokens / statistics.median(s) for name, s in seconds.items()},
        "ratio": statistics.median(ratios),
        "interval": [low, high],
        "ratios": ratios,
        "met": statistics.median(ratios) >= AIM,
        "processor microseconds a token": {
            part: s / (len(ratios) * tokens) * 1e6 for part, s in spent.items()
        },
    }


def main() -> int:
    """Measure; status 1 where something failed, whatever the figures are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tritonserver", type=Path, metavar="DIRECTORY")
    parser.add_argument("--python", type=Path, metavar="FILE", help="python3 of the models")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 8, 1])
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 4], help="of ensemble, a server each")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=240, help="no round begins later (default: 240)")
    parser.add_argument("--standin", action="store_true")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    device = "cpu" if args.standin else "cuda"
    report: dict[str, Any] = {"device": device, "torch": torch.__version__, "rows": [], "failed": []}
    if not args.standin:
        report["device"] = torch.cuda.get_device_name()

    def save() -> None:
        if args.json:
            args.json.write_text(json.dumps(report, indent=2) + "\n")

    with tempfile.TemporaryDirectory(prefix="enginix-served-") as directory:
        work = Path(directory)
        started = time.perf_counter()
        engine = build_engine(work, device)
        sys.stderr.write(f"engine built after {time.perf_counter() - started:.1f} s\n")
        inside = bench.InProcess(engine, device)
        for number, instances in enumerate(args.instances):
            if number and time.monotonic() > deadline:
                break
            try:
                place = work / f"server-{number}"
                place.mkdir()
                options = RepositoryOptions(max_batch_size=64, device=device, ensemble_instances=instances)
                setting = Setting(
                    place, engine, tritonserver=args.tritonserver, python=args.python, options=options
                )
                (place / "bare").mkdir()
                beside = bare.write(setting.repository, place / "bare")
                setting.repository = place / "both"
                build_triton_repository(engine, setting.repository, options, add_models=beside)
                started = time.perf_counter()
                with setting.serve(*([] if args.standin else ["--gpus", "0"])) as served:
                    sys.stderr.write(f"serves after {time.perf_counter() - started:.1f} s\n")
                    for count in args.streams:
                        row = measure_streams(inside, served, count, args.rounds, deadline)
                        report["rows"].append({"ensemble instances": instances, **row})
                        save()
                        sys.stdout.write(json.dumps(report["rows"][-1]) + "\n")
                        sys.stdout.flush()
            except Exception:
                report["failed"].append(traceback.format_exc())
                sys.stderr.write(report["failed"][-1])
                save()
        inside.scheduler.close()
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
