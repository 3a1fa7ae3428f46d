"""A Hugging Face model's configuration, with one name for each value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix.model.context_length import scale_context
from enginix.model.quantization import ModelQuantization
from enginix.model.rope import ModelRope


@dataclass(frozen=True)
class ModelExperts:
    """A mixture of experts.

    Attributes:
        count: experts a layer.
        top_k: experts a token.
        width: intermediate size of one expert.
        renormalize: whether the chosen experts' weights are scaled to sum to one.
        shared_width: intermediate size of the shared expert; 0 without one.
    """

    count: int
    top_k: int
    width: int
    renormalize: bool
    shared_width: int


@dataclass(frozen=True)
class ModelConfig:
    """The parts of a model's configuration that conversion, memory plan and report use; sizes in elements.

    Attributes:
        architecture: ``architectures[0]``.
        dtype: dtype that the config names; None where it names none.
        head_dim: size of one attention head.
        windows: tokens that each layer attends to, the last one included; None for a layer without a limit.
        notes: keys of ``config.json`` that are ignored here, and that other software may read.
        raw: the parsed ``config.json``.
        variant: generation of a model whose config.json does not tell it; None where it has none.
        description: the architecture's row of architectures.json or family_rows.json.
    """

    directory: Path
    architecture: str
    model_type: str
    dtype: str | None
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str
    norm_epsilon: float
    rope: ModelRope
    tie_word_embeddings: bool
    qkv_bias: bool
    dense_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    experts: ModelExperts | None
    quantization: ModelQuantization | None
    notes: tuple[str, ...]
    raw: Mapping[str, Any] = field(repr=False)
    description: Mapping[str, Any] = field(repr=False)
    variant: str | None = None

    @property
    def sliding_window(self) -> int | None:
        """The smallest window of any layer that is smaller than the context; None without one."""
        return min((w for w in self.windows if w and w < self.context), default=None)

    @property
    def context(self) -> int:
        """The longest sequence that the positions are made for, as rope scaling extends them."""
        return scale_context(self.max_position_embeddings, self.rope.scaling, self.rope.original)
