"""Engines of the stand-in, and what their gates say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginix.cli import main

Gpu = Callable[..., Path]

DEFAULT = {"files", "smoke", "greedy", "task", "invariance"}
SCORED = DEFAULT | {"agreement", "perplexity"}


def enginix(*words: object) -> int:
    return main([*map(str, words)])


def build(checkpoint: Path, model: Path, gpu: Gpu, out: Path, *more: object, fault: str = "") -> Path:
    words = ("--kind", "tensorrt", "--model", model, "--driver", gpu(fault), "--runtime", "trtllm-1.2.1")
    assert enginix("build", checkpoint, *words, "--target", "h200", *more, "-o", out) == 0
    return out


def failing(told: dict[str, Any]) -> set[str]:
    return {gate for gate, detail in told["gates"].items() if not detail["passed"]}
