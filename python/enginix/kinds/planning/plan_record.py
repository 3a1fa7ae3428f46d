"""What is asked of a memory plan, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Protocol

from enginix.inspect import InspectedModel, ModelDescription
from enginix.letter_case import camel_case_keys
from enginix.machine.gpu_table import TargetGpu
from enginix.memory_plan import arithmetic
from enginix.memory_plan.arithmetic import Change, ModelSizes, RankMemory


@dataclass(frozen=True)
class PlanRequest:
    """A request for a memory plan; None is the default of TensorRT-LLM or Edge-LLM.

    Attributes:
        step_tokens: tokens of each sequence in a step, for kind rtx.
        max_input_len: longest prompt, for kind edgellm; its ``max_seq_len`` is the capacity of the KV cache.
        kv_cache: ``auto`` for the model's, or a key of number_formats.json's ``kvCache``.
        dtype: dtype of everything unquantized.
    """

    kind: str = "tensorrt"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    max_input_len: int | None = None
    step_tokens: int | None = None
    sequences: int = 1
    kv_cache: str = "auto"
    dtype: str | None = None


class KindLimits(Protocol):
    """Limits of a plan, of any kind; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def max_batch_size(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def sequences(self) -> int: ...
    @property
    def kv_bits(self) -> int | None: ...
    def describe(self) -> str:
        """Return the limits as people read them."""
        ...


class StaticLimits:
    """Base of the limits of an engine on one GPU whose KV cache is allocated from the start."""

    max_batch_size: int
    quantization: str | None
    kv_bits: int | None = None

    @property
    def sequences(self) -> int:
        """Return the number of sequences that the KV cache holds."""
        return self.max_batch_size

    def as_plan_limits(self, step_tokens: int, cached_tokens: int) -> arithmetic.PlanLimits:
        """Return these limits by the names that the arithmetic of all kinds uses.

        Args:
            step_tokens: of each sequence in a step.
            cached_tokens: places of each sequence in the KV cache.
        """
        return arithmetic.PlanLimits(
            max_batch_size=self.max_batch_size,
            max_num_tokens=self.max_batch_size * step_tokens,
            max_seq_len=cached_tokens,
            sequences=self.max_batch_size,
            kv_bits=self.kv_bits,
            quantization=self.quantization,
        )


@dataclass(frozen=True)
class BuildNeeds:
    """Resources that a build needs: sizes of model and checkpoint are exact, all others are estimates.

    Attributes:
        model, checkpoint, engine: bytes in the store.
        host_memory, gpu_memory: bytes of memory during the build.
        tmpdir: bytes of temporary files.
    """

    model: int
    checkpoint: int
    engine: int
    host_memory: int
    gpu_memory: int
    tmpdir: int

    @property
    def store(self) -> int:
        return self.model + self.checkpoint + self.engine


Certainty = Literal["exact", "upper bound", "lower bound", "estimate"]


@dataclass(frozen=True)
class PlanCertainty:
    """How far each figure is known; docs/reference/memory-plan.md says from what.

    Attributes:
        weights: ``exact`` is the bytes that ``enginix convert`` writes.
        kv_token: an upper bound where layers keep only a window of tokens, or may.
        workspace, pool, build: by formulas that nothing measured.
    """

    weights: Certainty
    kv_token: Certainty
    workspace: Certainty = "estimate"
    pool: Certainty = "estimate"
    build: Certainty = "estimate"


@dataclass(frozen=True)
class CountedModel:
    """What headers or a lock tell of a model's sizes.

    Attributes:
        source: the model or the lock, for people.
        files: bytes of all files.
        weight_bytes: bytes of the weights as a checkpoint holds them.
        rank_weights: bytes of a rank, the mean over all.
    """

    source: str
    files: int
    sizes: ModelSizes
    weight_bytes: int
    rank_weights: arithmetic.RankWeights


@dataclass(frozen=True)
class MemoryPlan:
    """A memory plan.

    Attributes:
        obstacles: reasons other than memory why the engine cannot be, each with its fix.
        changes: changes that would make it fit, the smallest first; empty if it fits or no change helps.
    """

    source: str
    kind: str
    gpu: TargetGpu
    sizes: ModelSizes
    limits: KindLimits
    memory: RankMemory
    certainty: PlanCertainty
    build: BuildNeeds
    obstacles: tuple[str, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.memory.fits and not self.obstacles

    @property
    def sequences(self) -> int:
        """Return the number of sequences of ``max_seq_len`` tokens that fit at the same time."""
        return self.memory.tokens // max(1, self.memory.need_tokens // self.limits.sequences)

    def as_json(self) -> dict[str, Any]:
        """Return the plan with keys in camel case; limits have their names of Nix."""
        record: dict[str, Any] = {
            "fits": self.fits,
            "tightest": self.memory.tightest,
            "model": self.source,
            "kind": self.kind,
            "target": {field.name: getattr(self.gpu, field.name) for field in fields(TargetGpu)},
            "limits": asdict(self.limits),
            "memory": {
                **asdict(self.memory),
                "exactWeights": self.certainty.weights == "exact",
                "sequences": self.sequences,
            },
            "certainty": asdict(self.certainty),
            "build": {**asdict(self.build), "store": self.build.store},
            "obstacles": list(self.obstacles),
            "changes": [dict(c) for c in self.changes],
            "notes": list(self.notes),
        }
        camel: dict[str, Any] = camel_case_keys(record)
        return camel


class KindPlanner(Protocol):
    """The ``memory_plan`` module of a kind whose memory is not that of TensorRT-LLM's engines."""

    def plan_model(
        self, model: InspectedModel, description: ModelDescription, gpu: TargetGpu, request: PlanRequest
    ) -> MemoryPlan:
        """Plan from a model's headers."""
        ...

    def plan_lock(
        self, metadata: Mapping[str, Any], gpu: TargetGpu, request: PlanRequest, lock: CountedModel
    ) -> MemoryPlan:
        """Plan from a lock."""
        ...
