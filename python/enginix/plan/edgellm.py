"""The memory of a TensorRT Edge-LLM engine, in whole numbers: one GPU, float16.

``nix/check/edgellm-plan.nix`` is this module again, for evaluation; tests/python/plan/test_twin.py holds the
two together. What the wheel fixes when it builds (data/edgellm.json, memory): a KV cache of
``max_batch_size`` sequences of ``max_kv_cache_capacity`` tokens, in pages, allocated from the start; a step
of ``max_batch_size`` prompts of ``max_input_len`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from enginix.edgellm.build import cpu, payloads, uncountable
from enginix.errors import EnginixError, UsageError
from enginix.plan import arithmetic
from enginix.plan.arithmetic import FEWEST_TOKENS, SHORTEST, Cache, Change, Gpu, Memory, Sizes, Weights
from enginix.tables import table


@dataclass(frozen=True)
class Limits:
    """What is asked for.

    Attributes:
        kv_bits: bits of a KV cache number; None for the model's.
        quantization: of the weights; None for the model's.
    """

    max_input_len: int
    max_batch_size: int
    max_kv_cache_capacity: int
    kv_bits: int | None = None
    quantization: str | None = None

    @property
    def max_seq_len(self) -> int:
        """Prompt and answer of one sequence."""
        return self.max_kv_cache_capacity

    @property
    def sequences(self) -> int:
        """Sequences that have room from the start."""
        return self.max_batch_size

    def named(self) -> arithmetic.Limits:
        """The same, as the arithmetic of all kinds names them."""
        return arithmetic.Limits(
            max_batch_size=self.max_batch_size,
            max_num_tokens=self.max_batch_size * self.max_input_len,
            max_seq_len=self.max_kv_cache_capacity,
            sequences=self.max_batch_size,
            kv_bits=self.kv_bits,
            quantization=self.quantization,
        )


def page() -> int:
    """Tokens of a page of the KV cache."""
    return int(table("edgellm")["memory"]["pageTokens"]["value"])


def memory(sizes: Sizes, limits: Limits, gpu: Gpu, weights: Weights) -> Memory:
    """The GPU's memory."""
    return arithmetic.memory(sizes, limits.named(), gpu, weights, Cache(page(), 100))


def lighter(sizes: Sizes, gpu: Gpu) -> list[str]:
    """Formats smaller than the model's that Edge-LLM takes on the GPU, the heaviest first."""
    formats, rows = table("formats"), table("edgellm")["formats"]
    known = formats["weights"]
    if sizes.quantization not in known:
        return []
    return [
        name
        for name in formats["lighter"]
        if name in rows
        and gpu.sm >= rows[name]["minSm"]
        and known[name]["bitsPer128"] < known[sizes.quantization]["bitsPer128"]
    ]


def changes(sizes: Sizes, limits: Limits, gpu: Gpu, weights: Weights) -> list[Change]:
    """What would make it fit, the smallest change first; empty where nothing on this GPU would."""

    def fits(**values: Any) -> bool:
        try:
            return memory(sizes, replace(limits, **values), gpu, weights).fits
        except EnginixError:  # a format that this model cannot be put into
            return False

    def first(name: str, values: list[Any]) -> list[Change]:
        return next(([{name: v}] for v in values if fits(**{name: v})), [])

    room = memory(sizes, limits, gpu, weights).tokens
    shorter = room // limits.max_batch_size // page() * page()
    least = max(SHORTEST, limits.max_input_len)
    kv = sizes.kv_bits if limits.kv_bits is None else limits.kv_bits
    formats = lighter(sizes, gpu)
    found = [
        *first("max_input_len", list(arithmetic.halvings(limits.max_input_len, FEWEST_TOKENS))),
        *first("max_batch_size", list(arithmetic.halvings(limits.max_batch_size, 1))),
        *first("kv_bits", [8] if kv > 8 else []),
        *first("max_kv_cache_capacity", [shorter] if least <= shorter < limits.max_kv_cache_capacity else []),
        *first("quantization", formats),
    ]
    if found:
        return found
    small_kv = {"kv_bits": 8} if kv > 8 else {}
    steps = list(_smaller_steps(limits))
    together: list[dict[str, Any]] = [*steps, *({**s, **small_kv} for s in steps if small_kv)]
    together += [{**small_kv, "quantization": name} for name in formats]
    return next(([c] for c in together if fits(**c)), [])


def _smaller_steps(limits: Limits) -> Iterator[dict[str, Any]]:
    """Prompt and batch halved together, down to the least of both."""
    tokens, batch = limits.max_input_len, limits.max_batch_size
    while tokens > FEWEST_TOKENS or batch > 1:
        tokens, batch = max(min(tokens, FEWEST_TOKENS), tokens // 2), max(1, batch // 2)
        yield {"max_input_len": tokens, "max_batch_size": batch}


def limits_of(max_batch_size: int | None, max_input_len: int | None, capacity: int | None) -> Limits:
    """The limits, with the wheel's defaults filled in.

    Raises:
        UsageError: a prompt that no cache could hold, or more than the wheel's builder counts.
    """
    rows = table("edgellm")["build"]
    found = Limits(
        max_input_len=max_input_len or rows["maxInputLen"]["default"],
        max_batch_size=max_batch_size or rows["maxBatchSize"]["default"],
        max_kv_cache_capacity=capacity or rows["maxKvCacheCapacity"]["default"],
    )
    if found.max_input_len > found.max_kv_cache_capacity:
        raise UsageError(
            f"--max-input-len {found.max_input_len} is beyond --max-seq-len {found.max_kv_cache_capacity}",
            fix="raise --max-seq-len, which is the cache's capacity: prompt and answer",
        )
    beyond = uncountable(found.max_input_len, found.max_batch_size, found.max_kv_cache_capacity)
    if beyond is not None:
        raise UsageError(beyond, fix="lower one of the limits")
    return found


def systems(gpu: Gpu) -> tuple[str, ...]:
    """CPUs whose wheel has a payload for a GPU."""
    rows = table("edgellm")["payloads"]
    return tuple(sorted({cpu(row["system"]) for row in rows if row["sm"] == gpu.sm}, reverse=True))


def obstacles(architecture: str | None, quantization: str, gpu: Gpu) -> list[str]:
    """What stands in the way beside memory; the same refusals as nix/engine/edgellm-check.nix."""
    rows = table("edgellm")
    found = []
    if all(row["sm"] != gpu.sm for row in rows["payloads"]):
        found.append(
            f"Edge-LLM {rows['version']} has no payload for SM {gpu.sm} ({gpu.name}); its wheels have them "
            f"for {payloads()}: pass a plugin built for this GPU, or take kind llmapi"
        )
    if architecture not in rows["architectures"]:
        found.append(f"{architecture} is none of {', '.join(sorted(rows['architectures']))}")
    if quantization != "NO_QUANT":
        row = rows["formats"].get(quantization)
        if row is None:
            found.append(f"{quantization} is none of {', '.join(sorted(rows['formats']))}")
        elif gpu.sm < row["minSm"]:
            have = f", which has {', '.join(gpu.formats)}" if gpu.formats else ""
            found.append(f"{quantization} needs SM {row['minSm']} or later; {gpu.name} is SM {gpu.sm}{have}")
    return found
