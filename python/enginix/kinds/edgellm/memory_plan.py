"""The memory plan of a TensorRT Edge-LLM engine, in whole numbers: one GPU, float16.

``nix/check/edgellm-plan.nix`` computes the same figures at evaluation; tests/python/plan/test_twin.py
compares the two. The wheel fixes at build time (data/edgellm/edgellm.json, memory): a KV cache of
``max_batch_size`` sequences of ``max_kv_cache_capacity`` tokens, in pages, allocated from the start; a step
of ``max_batch_size`` prompts of ``max_input_len`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from enginix.errors import UsageError
from enginix.kinds.edgellm.build import (
    describe_other_ways,
    describe_payloads,
    find_uncountable_limit,
    format_cpu,
)
from enginix.machine.gpu_table import TargetGpu
from enginix.memory_plan import arithmetic
from enginix.memory_plan.arithmetic import (
    FEWEST_TOKENS,
    SHORTEST_SEQUENCE,
    Change,
    KvCachePaging,
    ModelSizes,
    RankMemory,
    RankWeights,
)
from enginix.model.number_formats import read_edgellm_formats
from enginix.tables import load_table


@dataclass(frozen=True)
class EdgellmPlanLimits:
    """Limits of the requested engine.

    Attributes:
        kv_bits: bits of a number in the KV cache; None for the model's.
        quantization: number format of the weights; None for the model's.
    """

    max_input_len: int
    max_batch_size: int
    max_kv_cache_capacity: int
    kv_bits: int | None = None
    quantization: str | None = None

    @property
    def max_seq_len(self) -> int:
        """Return the tokens of prompt and answer of one sequence."""
        return self.max_kv_cache_capacity

    @property
    def sequences(self) -> int:
        """Return the number of sequences that the KV cache holds."""
        return self.max_batch_size

    def describe(self) -> str:
        return (
            f"batch {self.max_batch_size}, prompts of {self.max_input_len}, "
            f"KV cache of {self.max_kv_cache_capacity} tokens a sequence, allocated from the start"
        )

    def named(self) -> arithmetic.PlanLimits:
        """Return these limits by the names that the arithmetic of all kinds uses."""
        return arithmetic.PlanLimits(
            max_batch_size=self.max_batch_size,
            max_num_tokens=self.max_batch_size * self.max_input_len,
            max_seq_len=self.max_kv_cache_capacity,
            sequences=self.max_batch_size,
            kv_bits=self.kv_bits,
            quantization=self.quantization,
        )


def read_page_tokens() -> int:
    return int(load_table("edgellm")["memory"]["pageTokens"]["value"])


def compute_edgellm_memory(
    sizes: ModelSizes, limits: EdgellmPlanLimits, gpu: TargetGpu, weights: RankWeights
) -> RankMemory:
    return arithmetic.compute_memory(
        sizes, limits.named(), gpu, weights, KvCachePaging(read_page_tokens(), 100)
    )


def find_edgellm_changes(
    sizes: ModelSizes, limits: EdgellmPlanLimits, gpu: TargetGpu, weights: RankWeights
) -> list[Change]:
    """List the changes that would make the engine fit, the smallest first; empty if none would."""
    cached_tokens = compute_edgellm_memory(sizes, limits, gpu, weights).tokens
    shorter = cached_tokens // limits.max_batch_size // read_page_tokens() * read_page_tokens()
    least = max(SHORTEST_SEQUENCE, limits.max_input_len)
    kv = sizes.kv_bits if limits.kv_bits is None else limits.kv_bits
    small_kv = {"kv_bits": 8} if kv > 8 else {}
    rows = read_edgellm_formats()
    formats = arithmetic.list_lighter_formats(sizes, lambda f: f in rows and gpu.sm >= rows[f]["minSm"])
    halved = arithmetic.iterate_halved_pairs(limits.max_input_len, limits.max_batch_size)
    steps = [{"max_input_len": tokens, "max_batch_size": batch} for tokens, batch in halved]
    return arithmetic.search_changes(
        limits,
        lambda changed: compute_edgellm_memory(sizes, changed, gpu, weights),
        {
            "max_input_len": arithmetic.iterate_halvings(limits.max_input_len, FEWEST_TOKENS),
            "max_batch_size": arithmetic.iterate_halvings(limits.max_batch_size, 1),
            "kv_bits": small_kv.values(),
            "max_kv_cache_capacity": [shorter] if least <= shorter < limits.max_kv_cache_capacity else [],
            "quantization": formats,
        },
        [
            *steps,
            *({**step, **small_kv} for step in steps if small_kv),
            *({**small_kv, "quantization": name} for name in formats),
        ],
    )


def fill_edgellm_limits(
    max_batch_size: int | None, max_input_len: int | None, capacity: int | None
) -> EdgellmPlanLimits:
    """Return the limits, with the wheel's defaults filled in.

    Raises:
        UsageError: the prompt is larger than the KV cache, or the limits overflow the wheel's builder.
    """
    rows = load_table("edgellm")["build"]
    limits = EdgellmPlanLimits(
        max_input_len=max_input_len or rows["maxInputLen"]["default"],
        max_batch_size=max_batch_size or rows["maxBatchSize"]["default"],
        max_kv_cache_capacity=capacity or rows["maxKvCacheCapacity"]["default"],
    )
    if limits.max_input_len > limits.max_kv_cache_capacity:
        raise UsageError(
            f"--max-input-len {limits.max_input_len} is beyond --max-seq-len {limits.max_kv_cache_capacity}",
            fix="raise --max-seq-len, which is the cache's capacity: prompt and answer",
        )
    beyond = find_uncountable_limit(limits.max_input_len, limits.max_batch_size, limits.max_kv_cache_capacity)
    if beyond is not None:
        raise UsageError(beyond, fix="lower one of the limits")
    return limits


def find_edgellm_certainty(architecture: str | None) -> Literal["exact", "estimate"]:
    """Return how far the KV cache of a token is known: of architectures that Edge-LLM takes, all by heads."""
    return "exact" if architecture in load_table("edgellm")["architectures"] else "estimate"


def list_payload_systems(gpu: TargetGpu) -> tuple[str, ...]:
    """List the CPUs with a payload for a GPU in their wheel."""
    rows = (
        row
        for row in load_table("edgellm")["payloads"]
        if row["sm"] == gpu.sm and gpu.system in (None, row["system"])
    )
    return tuple(sorted({format_cpu(row["system"]) for row in rows}, reverse=True))


def find_edgellm_obstacles(architecture: str | None, quantization: str, gpu: TargetGpu) -> list[str]:
    """List the obstacles other than memory; nix/kinds/edgellm/checks.nix refuses the same."""
    rows = load_table("edgellm")
    reasons = []
    if not list_payload_systems(gpu):
        on = f" on {format_cpu(gpu.system)}" if gpu.system else ""
        reasons.append(
            f"Edge-LLM {rows['version']} has no payload for SM {gpu.sm}{on} ({gpu.name}); its wheels "
            f"have them for {describe_payloads()} (fix: {describe_other_ways(gpu)})"
        )
    if architecture not in rows["architectures"]:
        known = ", ".join(sorted(rows["architectures"]))
        reasons.append(f"architecture {architecture} is not supported; supported: {known}")
    if quantization != "NO_QUANT":
        formats = read_edgellm_formats()
        row = formats.get(quantization)
        if row is None:
            known = ", ".join(sorted(formats))
            reasons.append(f"quantization {quantization} is not supported; supported: {known}")
        elif gpu.sm < row["minSm"]:
            have = f", which has {', '.join(gpu.formats)}" if gpu.formats else ""
            reasons.append(
                f"{quantization} needs SM {row['minSm']} or later; {gpu.name} is SM {gpu.sm}{have}"
            )
    return reasons
