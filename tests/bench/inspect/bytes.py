#!/usr/bin/env python3
"""What `enginix inspect` and `enginix plan` fetch of a repository, counted by the hub that sends it.

A model of four shards and 2 GB (real headers, holes for weights) on the loopback hub of tests/hub. Bytes that
left the hub, as a share of the model; requests; and time beside the same command on the model's directory.

  PYTHONPATH=python tests/bench/inspect/bytes.py [--gigabytes 2] [--shards 4] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "python")]

from hub import Hub  # noqa: E402  (found by the path above)

SIZES = {"hidden": 2048, "inter": 5632, "heads": 16, "kv": 8, "head": 128, "vocab": 32000}


def llama(directory: Path, gigabytes: float, shards: int) -> int:
    """A Llama's configuration and headers with holes for weights; bytes of its files."""
    s = SIZES
    layer = {
        "input_layernorm": [s["hidden"]],
        "post_attention_layernorm": [s["hidden"]],
        "mlp.gate_proj": [s["inter"], s["hidden"]],
        "mlp.up_proj": [s["inter"], s["hidden"]],
        "mlp.down_proj": [s["hidden"], s["inter"]],
        "self_attn.q_proj": [s["heads"] * s["head"], s["hidden"]],
        "self_attn.k_proj": [s["kv"] * s["head"], s["hidden"]],
        "self_attn.v_proj": [s["kv"] * s["head"], s["hidden"]],
        "self_attn.o_proj": [s["hidden"], s["heads"] * s["head"]],
    }
    whole = {
        "model.embed_tokens.weight": [s["vocab"], s["hidden"]],
        "model.norm.weight": [s["hidden"]],
        "lm_head.weight": [s["vocab"], s["hidden"]],
    }

    def size(shape: list[int]) -> int:
        return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)

    layers = max(
        1, round((gigabytes * 1e9 - sum(map(size, whole.values()))) / sum(map(size, layer.values())))
    )
    for n in range(layers):
        whole |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_act": "silu", "hidden_size": s["hidden"], "intermediate_size": s["inter"],
        "num_attention_heads": s["heads"], "num_key_value_heads": s["kv"], "head_dim": s["head"],
        "num_hidden_layers": layers, "vocab_size": s["vocab"], "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_bytes(b" " * 2_000_000)
    names, index = sorted(whole), {}
    for shard in range(shards):
        file, header, at = f"model-{shard + 1:05}-of-{shards:05}.safetensors", {}, 0
        for name in names[shard::shards]:
            header[name] = {
                "dtype": "BF16",
                "shape": whole[name],
                "data_offsets": [at, at + size(whole[name])],
            }
            at += size(whole[name])
            index[name] = file
        text = json.dumps(header).encode()
        with (directory / file).open("wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            f.truncate(8 + len(text) + at)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(p.stat().st_size for p in directory.iterdir())


def timed(words: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "enginix", *words], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="enginix-bench-") as room:
        directory = Path(room) / "model"
        total = llama(directory, args.gigabytes, args.shards)
        with Hub({"own/model": directory}) as hub:
            environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(ROOT / "python")}
            environment.pop("HF_TOKEN", None)
            hub.repositories["own/model"].head("main")  # the hub hashes its files before it is asked
            for command in (["inspect"], ["plan", "--target", "h200"]):
                hub.requests.clear()
                there = min(timed([*command, "own/model"], environment) for _ in range(3))
                requests, sent = len(hub.requests) // 3, sum(r["sent"] for r in hub.requests) // 3
                here = min(timed([*command, str(directory)], environment) for _ in range(3))
                rows.append(
                    {
                        "command": command[0],
                        "model": total,
                        "sent": sent,
                        "share": sent / total,
                        "requests": requests,
                        "timeOfDirectory": there / here,
                    }
                )
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for r in rows:
        sys.stdout.write(
            f"{r['command']}: {r['sent']:,} of {r['model']:,} bytes ({100 * r['share']:.4f} %), "
            f"{r['requests']} requests, {r['timeOfDirectory']:.2f} × the time of the directory\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
