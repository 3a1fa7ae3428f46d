"""vLLM on the same shapes, prompts and GPU as reference_checks' ``decode``: a yardstick, never a dependency.

Needs vLLM (0.24.0 was measured) beside torch; random weights, CUDA graphs on, no reuse of prefixes.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from reference_checks import LENGTHS, Check, Row

import models

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
import vllm

BATCHES = (1, 16, 64)


def _config(shape: dict[str, Any]) -> dict[str, Any]:
    renamed = {"head_size": "head_dim", "attn_bias": "attention_bias"}
    kept = {renamed.get(k, k): v for k, v in shape.items() if k != "position_embedding_type"}
    return {
        **kept,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }


def speed(device: str, work: Path) -> Iterator[Row]:
    """Prefill is a prompt to its first token; decode is what the further tokens take."""
    length, further = LENGTHS[device]
    for name, shape in (("0.6B-shaped", models.QWEN3_0_6B), ("8B-shaped", models.QWEN3_8B)):
        directory = work / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(_config(shape)))
        started = time.perf_counter()
        llm = vllm.LLM(
            str(directory),
            load_format="dummy",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=1024,
            gpu_memory_utilization=0.6,
        )
        _seconds(llm, 1, length, 1)
        yield Row(f"{name}: start to the first token", f"{time.perf_counter() - started:.1f} s")
        for rows in BATCHES:
            _seconds(llm, rows, length, 1 + further)
            first, whole = (
                statistics.median(_seconds(llm, rows, length, n) for _ in range(3)) for n in (1, 1 + further)
            )
            yield Row(f"{name}, batch {rows}: prefill of {length}", f"{rows * length / first:.0f} tokens/s")
            decoded = f"{rows * further / (whole - first):.0f} tokens/s"
            yield Row(f"{name}, batch {rows}: {further} tokens decoded", decoded)
        del llm
        gc.collect()
        torch.cuda.empty_cache()


def _seconds(llm: Any, rows: int, length: int, tokens: int) -> float:
    prompts = [{"prompt_token_ids": [(31 * i + 7 * j) % 30000 for j in range(length)]} for i in range(rows)]
    params = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert all(len(o.outputs[0].token_ids) == tokens for o in outputs)
    return time.perf_counter() - started


CHECKS: dict[str, Check] = {"vllm": speed}
