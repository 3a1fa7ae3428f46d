"""The computation of a checkpoint, as the executor holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from enginix.errors import CheckpointError
from enginix.model.context_length import scale_context
from enginix.reference.decoder_form import DecoderForm
from enginix.reference.quantization import REBUILD, ExecutorQuantization

Family = Literal["llama", "qwen2", "qwen3", "phi3", "form"]


@dataclass(frozen=True)
class ExecutorMapping:
    """The division of the weights over ranks.

    Attributes:
        tp: tensor-parallel size; ``tp == moe_tp * ep`` for mixtures of experts.
        pp: pipeline-parallel size.
        ep: expert-parallel size.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @property
    def moe_tp(self) -> int:
        """The number of ranks that each expert is cut over."""
        return self.tp // self.ep

    def layers(self, pp_rank: int, layers: int) -> range:
        """Return the global layer numbers of one pipeline rank; the first ranks take the remainder."""
        stage_size, remainder = divmod(layers, self.pp)
        start = pp_rank * stage_size + min(pp_rank, remainder)
        return range(start, start + stage_size + (pp_rank < remainder))


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts.

    Attributes:
        count: number of routed experts.
        top_k: experts per token.
        size: intermediate size of one expert.
        shared_size: intermediate size of the shared expert, 0 for none.
        renormalize: whether the chosen experts' weights are scaled to a sum of 1.
    """

    count: int
    top_k: int
    size: int
    shared_size: int
    renormalize: bool


@dataclass(frozen=True)
class ExecutorConfig:
    """The computation of a checkpoint. Sizes are of the whole model, never of a rank.

    Attributes:
        window: the smallest sliding window of any layer, from the checkpoint's manifest. The executor's
            layers attend to all tokens, so no sequence may be longer.
        form: how the family computes, for the family ``form``.
    """

    architecture: str
    family: Family
    dtype: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rotary_base: float
    rotary_dim: int
    rotary_scaling: dict[str, Any] | None
    attention_bias: bool
    mlp_bias: bool
    experts: ExpertsConfig | None
    embedding_shard_dim: int | None
    mapping: ExecutorMapping = field(default_factory=ExecutorMapping)
    quantization: ExecutorQuantization = field(default_factory=ExecutorQuantization)
    window: int | None = None
    form: DecoderForm = field(default_factory=DecoderForm)

    @property
    def context(self) -> int:
        """The longest sequence for which the executor computes the same as the model."""
        longest = scale_context(self.max_position_embeddings, self.rotary_scaling)
        return min(longest, self.window or longest)

    @property
    def world_size(self) -> int:
        """Number of rank files."""
        return self.mapping.tp * self.mapping.pp

    def describe(self) -> dict[str, Any]:
        """Return what an engine's manifest says of its model."""
        return {
            "architecture": self.architecture,
            "dtype": self.dtype,
            "layers": self.layers,
            "hiddenSize": self.hidden_size,
            "vocabSize": self.vocab_size,
            "maxPositionEmbeddings": self.max_position_embeddings,
            "quantization": self.quantization.algorithm,
            "kvCacheQuantization": self.quantization.kv_cache,
        }


class ExecutorConfigReader:
    """Typed access to one JSON object, with errors that name the key."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(what, where=self.where, fix=REBUILD)

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = 2**31 - 1) -> int:
        value = self.raw.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.fail(f"{key} is {value!r}, expected an integer from {least} to {most}")
        return value

    def number(
        self, key: str, default: float | None = None, least: float = 1e-30, most: float = 1e30
    ) -> float:
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.fail(f"{key} is {value!r}, expected a number from {least:g} to {most:g}")
        return float(value)

    def text(self, key: str) -> str | None:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            raise self.fail(f"{key} is {value!r}, expected a string or null")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(f"{key} is {value!r}, expected true or false")
        return value

    def part(self, key: str) -> ExecutorConfigReader:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.fail(f"{key} is {value!r}, expected an object")
        return ExecutorConfigReader(value or {}, f"{self.where}: {key}")
