"""Which GPUs the software of a kind has code for: data/machine/engine_kinds.json, by SM.

nix/check/kind-support.nix reads it in the same way; tests/python/engine_tensorrt/test_twin_gpus.py holds
the two together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginix.machine.gpu_table import TargetGpu
from enginix.tables import load_table

# Kinds that TensorRT-LLM executes.
_TENSORRT_LLM = ("tensorrt", "llmapi")
# The kinds of which `enginix plan` takes the first that a GPU runs.
_PLANNED = ("tensorrt", "llmapi", "edgellm", "reference")


@dataclass(frozen=True)
class UnsupportedGpu:
    """Why a kind does not run on a GPU, and what to do instead."""

    why: str
    fix: str


def _read_kinds() -> Mapping[str, Mapping[str, Any]]:
    kinds: Mapping[str, Mapping[str, Any]] = load_table("engine_kinds")["kinds"]
    return kinds


def has_code(kind: str, gpu: TargetGpu) -> bool:
    """Tell whether a kind's software has code for a GPU, on a system that may have it.

    An SM that the table does not have (``sm130-64gb-unlisted``) is left to the PyTorch backend to judge.
    """
    sms = _read_kinds()[kind]["sms"]
    if sms is None or (not gpu.is_listed and kind == "llmapi"):
        return True
    return any(gpu.sm in known for system, known in sms.items() if gpu.system in (None, system))


def list_running_kinds(gpu: TargetGpu) -> list[str]:
    """Return the kinds whose software has code for a GPU."""
    return [kind for kind in _read_kinds() if has_code(kind, gpu)]


def choose_planned_kind(gpu: TargetGpu) -> str:
    """Return the kind that a memory plan is for where its user names none."""
    return next(kind for kind in _PLANNED if has_code(kind, gpu))


def find_first_version(kind: str, sm: int) -> str | None:
    """Return the first TensorRT-LLM that is known to have code for an SM; None where every one has."""
    version: str | None = _read_kinds()[kind].get("since", {}).get(str(sm))
    return version


def explain_unsupported_gpu(kind: str, gpu: TargetGpu, version: str | None = None) -> UnsupportedGpu | None:
    """Explain why a kind does not run on a GPU; None if it does.

    Args:
        version: of TensorRT-LLM, which the engine is for; None for any.
    """
    if has_code(kind, gpu):
        first = find_first_version(kind, gpu.sm)
        if version is None or first is None or is_release_at_least(version, first):
            return None
        return UnsupportedGpu(
            f"kind {kind} runs on SM {gpu.sm} ({gpu.name}) from TensorRT-LLM {first} on, not with {version}",
            f"use runtime trtllm-{first} or a later one",
        )
    sms = _read_kinds()[kind]["sms"]
    known = sorted({sm for row in sms.values() for sm in row})
    why = f"kind {kind} runs on SM {', '.join(map(str, known))}; {gpu.name} is SM {gpu.sm}"
    if gpu.sm in known:
        systems = " and ".join(system for system, row in sms.items() if gpu.sm in row)
        why = f"kind {kind} runs on SM {gpu.sm} with {systems} alone; {gpu.name} has {gpu.system}"
    if kind in _TENSORRT_LLM:
        rows = load_table("engine_kinds")["withoutTensorrtLlm"]
        why += "".join(f", which {row['why']}" for row in rows if gpu.sm in row["sms"])
    others = " or ".join(f'"{other}"' for other in list_running_kinds(gpu))
    return UnsupportedGpu(why, f"use kind {others}, or another GPU")


def is_release_at_least(version: str, least: str) -> bool:
    """Tell whether a release of TensorRT-LLM is another or later: ``1.3.0rc20`` is before ``1.3.0``."""

    def order(text: str) -> tuple[list[int], float]:
        numbers, _, candidate = text.partition("rc")
        digits = re.match("[0-9]+", candidate)
        return [int(n) for n in re.findall("[0-9]+", numbers)[:3]], int(digits[0]) if digits else float("inf")

    return order(version) >= order(least)
