"""The memory of one rank, in whole numbers.

``nix/check/memory.nix`` has the formulas of ``compute_memory`` for evaluation; test_twin.py compares the two.
Sizes are bytes unless a name says otherwise. docs/reference/memory-plan.md tells exact figures from
estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from enginix.errors import EnginixError
from enginix.machine.gpu_table import TargetGpu
from enginix.model.number_formats import read_algorithms, read_packed_bits, supports_sm
from enginix.tables import load_table

SHORTEST_SEQUENCE = 1024  # tokens; never suggest a max_seq_len below this
FEWEST_TOKENS = 512  # never suggest a max_num_tokens below this
ELEMENT_BYTES: dict[str, int] = load_table("number_formats")["elementBytes"]


def read_default(name: str) -> int:
    """Return a default of TensorRT-LLM (data/memory_plan/memory_constants.json)."""
    return int(load_table("memory_constants")["defaults"][name]["value"])


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model that the arithmetic needs; names are those of a lock's ``model``.

    Attributes:
        mlp_width: intermediate features that one token passes through.
        element_bytes: of activations, and of the KV cache where it is not quantized.
        quantization: name in number_formats.json; ``NO_QUANT`` without.
        kv_bits: bits of a KV cache number as the model has it.
        latent: elements of a token that a layer of multi-head latent attention keeps, on every rank; 0 for
            layers that keep keys and values by heads.
        cached_layers: layers that keep anything of each token, where others are recurrent; 0 for all.
        state: bytes of a sequence that the recurrent layers keep.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden_size: int
    mlp_width: int
    vocabulary: int
    context: int
    element_bytes: int = 2
    quantization: str = "NO_QUANT"
    kv_bits: int = 16
    latent: int = 0
    cached_layers: int = 0
    state: int = 0


@dataclass(frozen=True)
class PlanLimits:
    """The limits that an engine is planned for.

    Attributes:
        sequences: number of sequences of ``max_seq_len`` tokens that must fit at the same time.
        kv_bits: bits of a KV cache number; None for the model's.
        quantization: of the weights; None for the model's.
    """

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    sequences: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    kv_bits: int | None = None
    quantization: str | None = None

    def describe(self) -> str:
        world = self.tensor_parallel * self.pipeline_parallel
        return (
            f"batch {self.max_batch_size}, {self.max_num_tokens} tokens a step, "
            f"{world} rank{'s' * (world > 1)} (TP {self.tensor_parallel}, PP {self.pipeline_parallel})"
        )


@dataclass(frozen=True)
class KvCachePaging:
    """The division of a KV cache.

    Attributes:
        block: tokens that are allocated at once.
        percent: share of the memory free beside weights and workspace that the cache gets.
    """

    block: int
    percent: int


# (tensor parallel, pipeline parallel, quantization or None for the model's) → bytes of the heaviest rank
RankWeights = Callable[[int, int, str | None], int]


@dataclass(frozen=True)
class RankMemory:
    """One rank's GPU memory. ``pool`` is the size of the KV cache, ``tokens`` its capacity."""

    total: int
    weights: int
    workspace: int
    kv_token: int
    pool: int
    tokens: int
    need_tokens: int

    @property
    def fits(self) -> bool:
        return self.tokens >= self.need_tokens

    @property
    def tightest(self) -> str:
        """The first of ``weights``, ``workspace``, ``kvCache`` that does not fit."""
        if self.weights > self.total:
            return "weights"
        return "workspace" if self.weights + self.workspace > self.total else "kvCache"


def estimate_workspace(sizes: ModelSizes, limits: PlanLimits) -> int:
    """Estimate the activations and logits of one step; see docs/reference/memory-plan.md.

    Of ``max_num_tokens`` tokens the residual stream, its normed copy and a block's output, and the wider of
    attention (query, key, value and its result) and MLP (gate, up and their product), cut over the ranks;
    and float32 logits of ``max_batch_size`` tokens, once whole and once a rank's part; and the states of
    recurrent layers.
    """
    tp = limits.tensor_parallel
    query = ceil_div(sizes.heads, tp) * sizes.head_size
    key_value = 2 * max(1, sizes.kv_heads // tp) * sizes.head_size
    widest = max(2 * query + key_value, 3 * ceil_div(sizes.mlp_width, tp))
    activations = limits.max_num_tokens * sizes.element_bytes * (3 * sizes.hidden_size + widest)
    logits = 4 * (sizes.vocabulary + ceil_div(sizes.vocabulary, tp))
    return activations + limits.max_batch_size * (logits + ceil_div(sizes.state, tp))


def compute_kv_token(sizes: ModelSizes, limits: PlanLimits) -> int:
    """Return the KV cache of one token on the rank with the most layers; KV heads are never split."""
    layers = ceil_div(sizes.cached_layers or sizes.layers, limits.pipeline_parallel)
    bits = sizes.kv_bits if limits.kv_bits is None else limits.kv_bits
    if sizes.latent:
        return layers * sizes.latent * bits // 8
    heads = max(1, sizes.kv_heads // limits.tensor_parallel)
    return 2 * layers * heads * sizes.head_size * bits // 8


def compute_memory(
    sizes: ModelSizes,
    limits: PlanLimits,
    gpu: TargetGpu,
    weights: RankWeights,
    cache: KvCachePaging | None = None,
) -> RankMemory:
    """Return the heaviest rank's memory.

    Args:
        cache: None for TensorRT-LLM's defaults.
    """
    cache = cache or KvCachePaging(read_default("tokensPerBlock"), read_default("kvPercent"))
    block = cache.block
    weight_bytes = weights(limits.tensor_parallel, limits.pipeline_parallel, limits.quantization)
    workspace_bytes, token = estimate_workspace(sizes, limits), compute_kv_token(sizes, limits)
    pool = max(0, gpu.memory - weight_bytes - workspace_bytes) * cache.percent // 100
    return RankMemory(
        total=gpu.memory,
        weights=weight_bytes,
        workspace=workspace_bytes,
        kv_token=token,
        pool=pool,
        tokens=pool // token // block * block,
        need_tokens=limits.sequences * ceil_div(limits.max_seq_len, block) * block,
    )


def divides_evenly(sizes: ModelSizes, tensor_parallel: int) -> bool:
    """Return whether heads, KV heads (or the ranks over them) and MLP divide over so many ranks."""
    heads, kv, width = sizes.heads, sizes.kv_heads, sizes.mlp_width
    tp = tensor_parallel
    return heads % tp == 0 and (kv % tp == 0 or tp % kv == 0) and width % tp == 0


def estimate_weights(total: int, sizes: ModelSizes, tied: bool) -> RankWeights:
    """Estimate the weights of a rank by the mean of the files' size, a lower bound of the heaviest rank."""

    def weights(tp: int, pp: int, quantization: str | None) -> int:
        return ceil_div(estimate_requantized(total, sizes, tied, quantization), tp * pp)

    return weights


def estimate_requantized(total: int, sizes: ModelSizes, tied: bool, quantization: str | None) -> int:
    """Return the bytes in another format: matrices shrink or grow, embedding and head stay."""
    bits = read_packed_bits()
    if quantization is None or sizes.quantization not in bits:
        return total
    copies = 1 if tied else 2
    fixed = min(total, copies * sizes.vocabulary * sizes.hidden_size * sizes.element_bytes)
    old, new = (bits[name] for name in (sizes.quantization, quantization))
    return fixed + ceil_div((total - fixed) * new, old)


def list_lighter_formats(sizes: ModelSizes, is_supported: Callable[[str], bool]) -> list[str]:
    """Return the formats smaller than the model's that engines support, the heaviest first."""
    known = read_packed_bits()
    if sizes.quantization not in known:
        return []
    return [
        name
        for name in load_table("number_formats")["lighter"]
        if is_supported(name) and known[name] < known[sizes.quantization]
    ]


Change = Mapping[str, Any]


def search_changes(
    limits: Any,
    compute: Callable[[Any], RankMemory],
    single: Mapping[str, Iterable[Any]],
    combined: Iterable[Change],
) -> list[Change]:
    """Return the changes of one limit that suffice, each with its first value that does.

    Where none does: the first combined change that suffices; empty without one.

    Args:
        limits: a frozen dataclass.
        compute: returns the memory of changed limits.
        single: limit → values to try, in this order.
    """

    def fits(change: Change) -> bool:
        try:
            return compute(replace(limits, **change)).fits
        except EnginixError:  # the model does not divide into these sizes, or does not support the format
            return False

    tried = (({name: value} for value in values) for name, values in single.items())
    sufficient = [next(filter(fits, changes), None) for changes in tried]
    return [c for c in sufficient if c] or next(([c] for c in combined if c and fits(c)), [])


def find_changes(sizes: ModelSizes, limits: PlanLimits, gpu: TargetGpu, weights: RankWeights) -> list[Change]:
    """Return changes that would make it fit, the smallest first; empty where none on this GPU would.

    Each is one limit with the value nearest to the requested one. If no single limit suffices, combinations
    follow: a step's tokens and batch halved together, then also a smaller KV cache, then more ranks and
    formats.
    """
    block = read_default("tokensPerBlock")
    cached_tokens = compute_memory(sizes, limits, gpu, weights).tokens
    shorter = cached_tokens // limits.sequences // block * block
    fitting_sequences = cached_tokens // (ceil_div(limits.max_seq_len, block) * block)
    kv = sizes.kv_bits if limits.kv_bits is None else limits.kv_bits
    small_kv = {"kv_bits": 8} if kv > 8 else {}
    more_ranks = range(limits.tensor_parallel + 1, read_default("gpusPerNode") + 1)
    wider = [n for n in more_ranks if divides_evenly(sizes, n)]
    rows = read_algorithms()
    formats = (
        [] if limits.quantization else list_lighter_formats(sizes, lambda f: supports_sm(rows[f], gpu.sm))
    )
    halved = iterate_halved_pairs(limits.max_num_tokens, limits.max_batch_size)
    steps = [{"max_num_tokens": tokens, "max_batch_size": batch} for tokens, batch in halved]
    combined_changes: list[dict[str, Any]] = [*steps, *({**s, **small_kv} for s in steps if small_kv)]
    for tp in [limits.tensor_parallel, *wider]:
        for name in [None, *formats]:
            change: dict[str, Any] = dict(small_kv)
            if tp != limits.tensor_parallel:
                change["tensor_parallel"] = tp
            if name is not None:
                change["quantization"] = name
            combined_changes.append(change)
    return search_changes(
        limits,
        lambda changed: compute_memory(sizes, changed, gpu, weights),
        {
            "max_num_tokens": iterate_halvings(
                limits.max_num_tokens, max(FEWEST_TOKENS, limits.max_batch_size)
            ),
            "max_batch_size": iterate_halvings(limits.max_batch_size, 1),
            "kv_bits": small_kv.values(),
            "sequences": [fitting_sequences] if 1 <= fitting_sequences < limits.sequences else [],
            "max_seq_len": [shorter] if SHORTEST_SEQUENCE <= shorter < limits.max_seq_len else [],
            "tensor_parallel": wider,
            "quantization": formats,
        },
        combined_changes,
    )


def iterate_halved_pairs(tokens: int, batch: int) -> Iterator[tuple[int, int]]:
    """Yield the tokens of a step and the batch halved together, down to the least of both."""
    while tokens > FEWEST_TOKENS or batch > 1:
        tokens, batch = max(min(tokens, FEWEST_TOKENS), tokens // 2), max(1, batch // 2)
        yield tokens, batch


def iterate_halvings(value: int, least: int) -> Iterator[int]:
    """Yield half of a value, half of that, and so on, down to ``least``."""
    while (value := value // 2) >= least:
        yield value
