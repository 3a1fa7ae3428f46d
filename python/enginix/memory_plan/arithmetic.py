"""The memory of one rank, in whole numbers.

``nix/check/memory.nix`` and ``plan.nix`` are this module again, for evaluation; test_twin.py holds them
together. Bytes unless a name says otherwise. What is exact and what is an estimate: docs/plan.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from enginix.errors import EnginixError, UsageError
from enginix.model.number_formats import read_algorithms, read_packed_bits, supports_sm
from enginix.tables import load_table
from enginix.wording import list_known

SHORTEST_SEQUENCE = 1024  # tokens; below that a smaller max_seq_len is no answer to anybody
FEWEST_TOKENS = 512  # of a step
ELEMENT_BYTES: dict[str, int] = load_table("number_formats")["elementBytes"]


def read_default(name: str) -> int:
    """A default of TensorRT-LLM (data/memory_plan/memory_constants.json)."""
    return int(load_table("memory_constants")["defaults"][name]["value"])


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class ModelSizes:
    """What of a model the arithmetic needs; names are those of a lock's ``model``.

    Attributes:
        mlp_width: intermediate features that one token passes through.
        element_bytes: of activations, and of the KV cache where it is not quantized.
        quantization: name in number_formats.json; ``NO_QUANT`` without.
        kv_bits: bits of a KV cache number as the model has it.
        latent: elements of a token that a layer of multi-head latent attention keeps, on every rank; 0 for
            layers that keep keys and values by heads.
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


@dataclass(frozen=True)
class TargetGpu:
    """A target.

    Attributes:
        memory: what one GPU has, in bytes.
        formats: number formats that it computes with, names of gpus.json.
        unified: whether its memory is the CPU's as well.
    """

    name: str
    sm: int
    memory: int
    formats: tuple[str, ...] = ()
    unified: bool = False


@dataclass(frozen=True)
class PlanLimits:
    """What is asked for.

    Attributes:
        sequences: how many sequences of ``max_seq_len`` tokens must find room at the same time.
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


@dataclass(frozen=True)
class KvCachePaging:
    """How a KV cache is cut.

    Attributes:
        block: tokens that are given out at once.
        percent: of what weights and workspace leave, that the cache gets.
    """

    block: int
    percent: int


# (tensor parallel, pipeline parallel, quantization or None for the model's) → bytes of the heaviest rank
RankWeights = Callable[[int, int, str | None], int]


@dataclass(frozen=True)
class RankMemory:
    """One rank's GPU memory. ``pool`` is what the KV cache gets, ``tokens`` what it holds."""

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
        """The first of ``weights``, ``workspace``, ``kvCache`` that memory runs out at."""
        if self.weights > self.total:
            return "weights"
        return "workspace" if self.weights + self.workspace > self.total else "kvCache"


def estimate_workspace(sizes: ModelSizes, limits: PlanLimits) -> int:
    """Activations and logits of one step: an estimate, see docs/plan.md.

    Of ``max_num_tokens`` tokens the residual stream, its normed copy and a block's output, and the wider of
    attention (query, key, value and its result) and MLP (gate, up and their product), cut over the ranks;
    and float32 logits of ``max_batch_size`` tokens, once whole and once a rank's part.
    """
    tp = limits.tensor_parallel
    query = ceil_div(sizes.heads, tp) * sizes.head_size
    key_value = 2 * max(1, sizes.kv_heads // tp) * sizes.head_size
    widest = max(2 * query + key_value, 3 * ceil_div(sizes.mlp_width, tp))
    activations = limits.max_num_tokens * sizes.element_bytes * (3 * sizes.hidden_size + widest)
    return activations + limits.max_batch_size * 4 * (sizes.vocabulary + ceil_div(sizes.vocabulary, tp))


def compute_kv_token(sizes: ModelSizes, limits: PlanLimits) -> int:
    """KV cache of one token on the rank with the most layers; KV heads are replicated, never split."""
    layers = ceil_div(sizes.layers, limits.pipeline_parallel)
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
    """The heaviest rank's memory.

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
    """Whether heads, KV heads (or the other way round) and MLP can be cut over so many ranks."""
    heads, kv, width = sizes.heads, sizes.kv_heads, sizes.mlp_width
    tp = tensor_parallel
    return heads % tp == 0 and (kv % tp == 0 or tp % kv == 0) and width % tp == 0


def estimate_weights(total: int, sizes: ModelSizes, tied: bool) -> RankWeights:
    """Weights of a rank from the size of the files: the mean, which the heaviest rank is never below."""

    def weights(tp: int, pp: int, quantization: str | None) -> int:
        return ceil_div(estimate_requantized(total, sizes, tied, quantization), tp * pp)

    return weights


def estimate_requantized(total: int, sizes: ModelSizes, tied: bool, quantization: str | None) -> int:
    """Bytes in another format: matrices shrink or grow, embedding and head stay."""
    bits = read_packed_bits()
    if quantization is None or sizes.quantization not in bits:
        return total
    copies = 1 if tied else 2
    fixed = min(total, copies * sizes.vocabulary * sizes.hidden_size * sizes.element_bytes)
    old, new = (bits[name] for name in (sizes.quantization, quantization))
    return fixed + ceil_div((total - fixed) * new, old)


def list_lighter_formats(sizes: ModelSizes, gpu: TargetGpu) -> list[str]:
    """Formats smaller than the model's that the GPU's engines take, the heaviest first."""
    rows, known = read_algorithms(), read_packed_bits()
    if sizes.quantization not in known:
        return []

    return [
        name
        for name in load_table("number_formats")["lighter"]
        if supports_sm(rows[name], gpu.sm) and known[name] < known[sizes.quantization]
    ]


Change = Mapping[str, Any]


def find_changes(sizes: ModelSizes, limits: PlanLimits, gpu: TargetGpu, weights: RankWeights) -> list[Change]:
    """What would make it fit, the smallest change first; empty where nothing on this GPU would.

    Each is one limit with the value nearest to what was asked for. Only where no single one suffices: a
    step's tokens and batch halved together, then a smaller KV cache beside, then more ranks and formats.
    """

    def fits(**values: Any) -> bool:
        try:
            return compute_memory(sizes, replace(limits, **values), gpu, weights).fits
        except EnginixError:  # sizes or a format that this model cannot be cut or put into
            return False

    def first(name: str, values: list[Any]) -> list[Change]:
        return next(([{name: v}] for v in values if fits(**{name: v})), [])

    block = read_default("tokensPerBlock")
    cached_tokens = compute_memory(sizes, limits, gpu, weights).tokens
    shorter = cached_tokens // limits.sequences // block * block
    kv = sizes.kv_bits if limits.kv_bits is None else limits.kv_bits
    wider = [
        n
        for n in range(limits.tensor_parallel + 1, read_default("gpusPerNode") + 1)
        if divides_evenly(sizes, n)
    ]
    formats = list_lighter_formats(sizes, gpu) if limits.quantization is None else []
    least_tokens = max(FEWEST_TOKENS, limits.max_batch_size)
    single_changes = [
        *first("max_num_tokens", list(iterate_halvings(limits.max_num_tokens, least_tokens))),
        *first("max_batch_size", list(iterate_halvings(limits.max_batch_size, 1))),
        *first("kv_bits", [8] if kv > 8 else []),
        *first(
            "sequences",
            [n for n in (_count_fitting_sequences(cached_tokens, limits),) if 1 <= n < limits.sequences],
        ),
        *first("max_seq_len", [shorter] if SHORTEST_SEQUENCE <= shorter < limits.max_seq_len else []),
        *first("tensor_parallel", wider),
        *first("quantization", formats),
    ]
    if single_changes:
        return single_changes
    small_kv = {"kv_bits": 8} if kv > 8 else {}
    steps = list(_iterate_smaller_steps(limits))
    combined_changes: list[dict[str, Any]] = [*steps, *({**s, **small_kv} for s in steps if small_kv)]
    for tp in [limits.tensor_parallel, *wider]:
        for name in [None, *formats]:
            change: dict[str, Any] = dict(small_kv)
            if tp != limits.tensor_parallel:
                change["tensor_parallel"] = tp
            if name is not None:
                change["quantization"] = name
            combined_changes.append(change)
    return next(([c] for c in combined_changes if c and fits(**c)), [])


def _iterate_smaller_steps(limits: PlanLimits) -> Iterator[dict[str, Any]]:
    """``max_num_tokens`` and ``max_batch_size`` halved together, down to the least of both."""
    tokens, batch = limits.max_num_tokens, limits.max_batch_size
    while tokens > FEWEST_TOKENS or batch > 1:
        tokens, batch = max(min(tokens, FEWEST_TOKENS), tokens // 2), max(1, batch // 2)
        yield {"max_num_tokens": tokens, "max_batch_size": batch}


def iterate_halvings(value: int, least: int) -> Iterator[int]:
    """Half of a value, half of that, and so on, down to ``least``."""
    while (value := value // 2) >= least:
        yield value


def _count_fitting_sequences(cached_tokens: int, limits: PlanLimits) -> int:
    block = read_default("tokensPerBlock")
    return cached_tokens // (ceil_div(limits.max_seq_len, block) * block)


def find_target_gpu(name: str) -> TargetGpu:
    """A target of gpus.json. Its memory is 0 where the table has none.

    Raises:
        UsageError: not in the table; the nearest names are given.
    """
    rows = load_table("gpus")["gpus"]
    if name not in rows:
        raise UsageError(f"unknown target {name!r}", fix=list_known(name, rows))
    row = rows[name]
    return TargetGpu(name, row["sm"], read_gpu_memory(row), tuple(row["formats"]), row.get("unified", False))


def read_gpu_memory(row: Mapping[str, Any]) -> int:
    """Bytes: as a driver reports them where that is known, else NVIDIA's gigabytes of 10^9; 0 for unknown."""
    if row.get("memoryMiB"):
        return int(row["memoryMiB"]) << 20
    return (row["memoryGB"] or 0) * 10**9
