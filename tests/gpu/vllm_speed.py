#!/usr/bin/env python3
"""Times the reference executor and vLLM on the same shapes, one after another: prefill, decode, start.

    python3 tests/gpu/vllm_speed.py --site SITE [--json FILE] [--shapes 0.6B 8B] [--batches 1 16 64]

Each runs in a process of its own, with random weights in bfloat16, CUDA graphs on, prompts of 512 tokens and
128 tokens decoded; figures are medians. Start is from the start of the process to the first token, of which
vLLM compiles a part unless its cache is warm. ``--standin`` tries the control flow on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "python")]
LENGTH, FURTHER, ROUNDS = 512, 128, 5
SHAPES = ("0.6B", "8B")
# Share of vLLM's figure that is aimed at: shape and batch → decode; prefill of the 8B shape at 16.
AIMS = {
    ("0.6B", 1): 0.6,
    ("0.6B", 16): 0.6,
    ("0.6B", 64): 0.6,
    ("8B", 1): 0.8,
    ("8B", 16): 0.8,
    ("8B", 64): 0.6,
}


def list_prompts(rows: int) -> list[list[int]]:
    return [[(31 * i + 7 * j) % 30000 for j in range(LENGTH)] for i in range(rows)]


def time_rounds(call: Any, rounds: int = ROUNDS) -> float:
    spent = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def measure_batches(generate: Any, batches: list[int]) -> dict[str, dict[str, float]]:
    """Return prefill and decode in tokens a second, by batch.

    Args:
        generate: (prompts, tokens) → nothing; ends when all tokens are there.
    """
    rows = {}
    for count in batches:
        prompts = list_prompts(count)
        started = time.perf_counter()
        generate(prompts, 1 + FURTHER)
        once = time.perf_counter() - started
        generate(prompts, 1)
        first = time_rounds(partial(generate, prompts, 1))
        whole = time_rounds(partial(generate, prompts, 1 + FURTHER))
        rows[str(count)] = {
            "prefill": count * LENGTH / first,
            "decode": count * FURTHER / (whole - first),
            "whole": count * (1 + FURTHER) / whole,
            "first use": once - whole,
        }
        sys.stderr.write(f"batch {count}: {json.dumps(rows[str(count)])}\n")
    return rows


def find_shape(name: str) -> dict[str, Any]:
    import models

    named = {"0.6B": models.QWEN3_0_6B, "8B": models.QWEN3_8B}[name]
    return models.shape(named, "cpu" if os.environ.get("VLLM_SPEED_STANDIN") else "cuda")


def measure_ours(name: str, batches: list[int], started: float) -> dict[str, Any]:
    """Measure the reference executor through its scheduler."""
    import torch
    from reference_checks import _serve

    import models
    from enginix.reference.scheduler import Scheduler

    device = "cpu" if os.environ.get("VLLM_SPEED_STANDIN") else "cuda"
    weights = models.RandomWeights(device, **find_shape(name))
    executor = weights.load(torch.float32 if device == "cpu" else torch.bfloat16)
    scheduler = Scheduler(executor, batches[0])
    _serve(scheduler, [tuple(list_prompts(1)[0])], [1])
    first_token = time.time() - started
    scheduler.close()
    rows = {}
    for count in batches:
        scheduler = Scheduler(executor, count)

        def serve(prompts, tokens, scheduler=scheduler):
            return _serve(scheduler, [tuple(p) for p in prompts], [tokens] * len(prompts))

        rows |= measure_batches(serve, [count])
        scheduler.close()
    return {"start": first_token, "batches": rows}


def measure_vllm(name: str, batches: list[int], started: float) -> dict[str, Any]:
    """Measure vLLM with dummy weights."""
    import vllm

    shape = find_shape(name)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        **{k: v for k, v in shape.items() if k not in ("head_size", "attn_bias", "position_embedding_type")},
        "head_dim": shape["head_size"],
    }
    with tempfile.TemporaryDirectory() as model:
        Path(model, "config.json").write_text(json.dumps(config))
        llm = vllm.LLM(
            model=model,
            load_format="dummy",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            dtype="bfloat16",
            max_model_len=1024,
            max_num_seqs=max(batches),
            gpu_memory_utilization=0.5,
            seed=0,
        )

        def generate(prompts: list[list[int]], tokens: int) -> None:
            params = vllm.SamplingParams(
                temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
            )
            found = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
            assert all(len(one.outputs[0].token_ids) == tokens for one in found)

        generate(list_prompts(1), 1)
        first_token = time.time() - started
        return {"start": first_token, "batches": measure_batches(generate, batches)}


def run_child(who: str, name: str, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Measure in a process of its own."""
    words = [
        sys.executable,
        str(HERE / "vllm_speed.py"),
        "--child",
        who,
        "--shapes",
        name,
        "--json",
        str(out),
    ]
    words += ["--batches", *map(str, args.batches), "--started", str(time.time())]
    site = [str(args.site or HERE / "vllm_standin")] if who == "vllm" else []
    if args.standin and who == "vllm":
        site.append(str(HERE.parents[1] / "python"))
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join([*site, os.environ.get("PYTHONPATH", "")]),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "HF_HUB_OFFLINE": "1",
    }
    out.unlink(missing_ok=True)
    try:
        done = subprocess.run(words, env=environment, timeout=args.limit, check=False)
        found: dict[str, Any] = json.loads(out.read_text("utf-8")) if out.is_file() else {}
        return found or {"error": f"ended with {done.returncode}"}
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {args.limit} s"}


def format_table(found: dict[str, Any]) -> str:
    lines = ["| what | reference | vLLM | ratio | aim |", "|---|---|---|---|---|"]
    for name, both in found.items():
        ours, theirs = both["ours"], both["vllm"]
        for count, row in ours.get("batches", {}).items():
            other = theirs.get("batches", {}).get(count)
            for what in ("prefill", "decode"):
                aim = AIMS.get((name, int(count)), "") if what == "decode" else ""
                aim = 0.8 if (name, count, what) == ("8B", "16", "prefill") else aim
                figure = f"{other[what]:,.0f} | {row[what] / other[what]:.2f}" if other else " | "
                lines.append(
                    f"| {name}, batch {count}, {what} | {row[what]:,.0f} tokens/s | {figure} | {aim} |"
                )
        if "start" in ours and "start" in theirs:
            ratio = ours["start"] / theirs["start"]
            lines.append(
                f"| {name}, start | {ours['start']:.1f} s | {theirs['start']:.1f} s | {ratio:.2f} | 0.5 |"
            )
        for who in ("ours", "vllm"):
            if "error" in both[who]:
                lines.append(f"| {name}, {who} | {both[who]['error']} | | | |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, and print the table; status 1 where one did not run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--site", type=Path)
    parser.add_argument("--standin", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16, 64])
    parser.add_argument("--limit", type=int, default=200, help="seconds of one process")
    parser.add_argument("--child", choices=("ours", "vllm"), help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure = {"ours": measure_ours, "vllm": measure_vllm}[args.child]
        found = measure(args.shapes[0], args.batches, args.started)
        args.json.write_text(json.dumps(found), "utf-8")
        return 0
    if args.standin:
        os.environ["VLLM_SPEED_STANDIN"] = "1"
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name in args.shapes:
            found[name] = {
                who: run_child(who, name, args, Path(work, "found.json")) for who in ("ours", "vllm")
            }
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    sys.stdout.write(format_table(found))
    return int(any("error" in row for both in found.values() for row in both.values()))


if __name__ == "__main__":
    sys.exit(main())
