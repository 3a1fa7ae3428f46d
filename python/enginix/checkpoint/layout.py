"""What each rank holds: the modules of an architecture, cut as TensorRT-LLM cuts them.

One description of an architecture (architectures.json) and one checkpoint configuration give every
module of a rank with its TensorRT-LLM name and the slices of the Hugging Face matrices that it is made of.
Conversion reads the slices, verification the names and shapes. Source: the golden data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from enginix.checkpoint.config import CheckpointConfig
from enginix.errors import CheckpointError
from enginix.tables import table


@dataclass(frozen=True)
class Slice:
    """Rows and columns of one Hugging Face matrix, ``pad`` zero rows behind them.

    Attributes:
        module: Hugging Face module, for instance ``model.layers.0.self_attn.q_proj``.
        out, inp: the whole matrix's rows and columns.
        rows, cols: half-open ranges in it.
    """

    module: str
    out: int
    inp: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    pad: int = 0

    @property
    def height(self) -> int:
        return self.rows[1] - self.rows[0] + self.pad

    @property
    def width(self) -> int:
        return self.cols[1] - self.cols[0]


@dataclass(frozen=True)
class Linear:
    """A TensorRT-LLM matrix: slices stacked by rows, and for experts one such stack each.

    Attributes:
        name: for instance ``transformer.layers.0.attention.qkv``; layers count from 0 in each rank.
        groups: one tuple of slices for a dense matrix, one per local expert otherwise.
        split: ``column`` cuts output rows over ranks (their biases, too), ``row`` cuts input columns.
        stacked: the tensors lead with the expert axis.
        quantizable: whether a format may apply to it at all.
        dtype: overrides the checkpoint's dtype (the router is ``float32``).
    """

    name: str
    groups: tuple[tuple[Slice, ...], ...]
    split: Literal["column", "row"]
    bias: bool = False
    stacked: bool = False
    quantizable: bool = True
    dtype: str | None = None

    @property
    def out(self) -> int:
        return sum(s.height for s in self.groups[0])

    @property
    def inp(self) -> int:
        return self.groups[0][0].width

    def shape(self, *tail: int) -> tuple[int, ...]:
        """``tail`` behind the expert axis, where there is one."""
        return (len(self.groups), *tail) if self.stacked else tail

    def modules(self) -> list[str]:
        """The Hugging Face modules it is made of, each once, in order."""
        return list(dict.fromkeys(s.module for group in self.groups for s in group))


@dataclass(frozen=True)
class Vector:
    """A whole vector on every rank that has it: a norm's weight."""

    name: str
    module: str
    size: int


@dataclass(frozen=True)
class KvCache:
    """Place of a layer's KV-cache scales."""

    name: str
    modules: tuple[str, str]  # Hugging Face modules that carry k_scale and v_scale


Module = Linear | Vector | KvCache


def _even(total: int, parts: int, index: int) -> tuple[int, int]:
    return total // parts * index, total // parts * (index + 1)


def _ceil(total: int, parts: int, index: int) -> tuple[tuple[int, int], int]:
    """Rows of a part, and zero rows behind them: ceil(total / parts) each, the last ones padded."""
    each = ceil(total / parts)
    begin, end = min(each * index, total), min(each * (index + 1), total)
    return (begin, end), each - (end - begin)


class Layout:
    """All modules of a checkpoint, rank by rank."""

    def __init__(self, config: CheckpointConfig) -> None:
        rows = table("architectures")["architectures"]
        if config.architecture not in rows:
            raise CheckpointError(
                f"architecture {config.architecture!r} has no layout here; known: {', '.join(sorted(rows))}",
                fix="only these can be converted by 'enginix' and checked tensor by tensor",
            )
        self.config = config
        self.row: Mapping[str, Any] = rows[config.architecture]

    def rank(self, rank: int) -> Iterator[Module]:
        """The modules of one rank, layer by layer."""
        c, m = self.config, self.config.mapping
        tp_rank, pp_rank = m.tp_rank(rank), m.pp_rank(rank)
        if pp_rank == 0:
            yield self._embedding(tp_rank)
        for local, index in enumerate(m.layers(pp_rank, c.num_hidden_layers)):
            yield from self._layer(f"transformer.layers.{local}", f"model.layers.{index}", tp_rank)
        if pp_rank == m.pipeline_parallel - 1:
            yield Vector("transformer.ln_f", "model.norm", c.hidden_size)
            rows, pad = _ceil(c.vocab_size, m.tensor_parallel, tp_rank)
            head = Slice("lm_head", c.vocab_size, c.hidden_size, rows, (0, c.hidden_size), pad)
            yield Linear("lm_head", ((head,),), "column", quantizable=False)

    def _embedding(self, tp_rank: int) -> Linear:
        c, tp = self.config, self.config.mapping.tensor_parallel
        rows, pad, cols = (0, c.vocab_size), 0, (0, c.hidden_size)
        if c.use_parallel_embedding and c.embedding_sharding_dim == 0:
            rows, pad = _ceil(c.vocab_size, tp, tp_rank)
        elif c.use_parallel_embedding:
            cols = _even(c.hidden_size, tp, tp_rank)
        piece = Slice("model.embed_tokens", c.vocab_size, c.hidden_size, rows, cols, pad)
        return Linear("transformer.vocab_embedding", ((piece,),), "column", quantizable=False)

    def _layer(self, ours: str, theirs: str, tp_rank: int) -> Iterator[Module]:
        c = self.config
        yield Vector(f"{ours}.input_layernorm", f"{theirs}.input_layernorm", c.hidden_size)
        yield from self._attention(f"{ours}.attention", f"{theirs}.self_attn", tp_rank)
        yield Vector(f"{ours}.post_layernorm", f"{theirs}.post_attention_layernorm", c.hidden_size)
        if self.row["mlp"] == "experts":
            yield from self._experts(f"{ours}.mlp", theirs, tp_rank)
        else:
            yield from self._mlp(f"{ours}.mlp", f"{theirs}.mlp", tp_rank)

    def _attention(self, ours: str, theirs: str, tp_rank: int) -> Iterator[Module]:
        c, tp = self.config, self.config.mapping.tensor_parallel
        heads, kv, size, hidden = c.num_attention_heads, c.num_key_value_heads, c.head_size, c.hidden_size
        q = _even(heads * size, tp, tp_rank)
        # Where there are more ranks than KV heads, several ranks hold the same head.
        own = _even(kv, tp, tp_rank) if kv >= tp else (tp_rank * kv // tp, tp_rank * kv // tp + 1)
        k = (own[0] * size, own[1] * size)
        whole = (0, hidden)
        if self.row["attention"] == "fused":
            total = (heads + 2 * kv) * size
            starts = (0, heads * size, (heads + kv) * size)
            qkv = tuple(
                Slice(f"{theirs}.qkv_proj", total, hidden, (at + r[0], at + r[1]), whole)
                for at, r in zip(starts, (q, k, k), strict=True)
            )
        else:
            qkv = (
                Slice(f"{theirs}.q_proj", heads * size, hidden, q, whole),
                Slice(f"{theirs}.k_proj", kv * size, hidden, k, whole),
                Slice(f"{theirs}.v_proj", kv * size, hidden, k, whole),
            )
        yield Linear(f"{ours}.qkv", (qkv,), "column", bias=c.attn_bias)
        if self.row["qkNorm"]:
            yield Vector(f"{ours}.q_layernorm", f"{theirs}.q_norm", size)
            yield Vector(f"{ours}.k_layernorm", f"{theirs}.k_norm", size)
        dense = Slice(f"{theirs}.o_proj", hidden, heads * size, (0, hidden), q)
        yield Linear(f"{ours}.dense", ((dense,),), "row", bias=c.dense_bias)
        yield KvCache(ours, (f"{theirs}.k_proj", f"{theirs}.v_proj"))

    def _mlp(self, ours: str, theirs: str, tp_rank: int) -> Iterator[Linear]:
        c = self.config
        width, hidden = c.intermediate_size, c.hidden_size
        own, whole = _even(width, c.mapping.tensor_parallel, tp_rank), (0, hidden)
        if (
            self.row["mlp"] == "fused"
        ):  # the model has [gate; up] in one matrix, TensorRT-LLM wants [up; gate]
            fused = tuple(
                Slice(f"{theirs}.gate_up_proj", 2 * width, hidden, (at + own[0], at + own[1]), whole)
                for at in (width, 0)
            )
            yield Linear(f"{ours}.fc", (fused,), "column")
        else:
            for name, module in (("fc", "gate_proj"), ("gate", "up_proj")):
                piece = Slice(f"{theirs}.{module}", width, hidden, own, whole)
                yield Linear(f"{ours}.{name}", ((piece,),), "column", bias=c.mlp_bias)
        proj = Slice(f"{theirs}.down_proj", hidden, width, (0, hidden), own)
        yield Linear(f"{ours}.proj", ((proj,),), "row", bias=c.mlp_bias)

    def _gated(
        self, theirs: str, names: Mapping[str, str], width: int, own: tuple[int, int]
    ) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
        """One expert's slices: [up; gate] and down."""
        hidden = self.config.hidden_size
        fc = tuple(
            Slice(f"{theirs}.{names[part]}", width, hidden, own, (0, hidden)) for part in ("up", "gate")
        )
        return fc, (Slice(f"{theirs}.{names['down']}", hidden, width, (0, hidden), own),)

    def _experts(self, ours: str, theirs: str, tp_rank: int) -> Iterator[Linear]:
        c, m, row = self.config, self.config.mapping, self.row["experts"]
        count, width, hidden = c.moe.num_experts, c.moe.intermediate_size, c.hidden_size

        def whole(name: str, module: str, out: int, dtype: str | None) -> Linear:
            piece = Slice(f"{theirs}.{module}", out, hidden, (0, out), (0, hidden))
            return Linear(f"{ours}.{name}", ((piece,),), "column", quantizable=False, dtype=dtype)

        yield whole("router", row["router"], count, "float32")
        own = _even(width, m.expert_tensor_parallel, tp_rank // m.expert_parallel)
        local = range(*_even(count, m.expert_parallel, tp_rank % m.expert_parallel))
        pairs = [self._gated(f"{theirs}.{row['expert'].format(expert=e)}", row, width, own) for e in local]
        yield Linear(f"{ours}.fc", tuple(fc for fc, _ in pairs), "column", stacked=True)
        yield Linear(f"{ours}.proj", tuple(down for _, down in pairs), "row", stacked=True)
        if row["shared"]:
            shared = c.moe.shared_intermediate_size
            mine = _even(shared, m.tensor_parallel, tp_rank)
            fc, down = self._gated(f"{theirs}.{row['shared']['expert']}", row, shared, mine)
            yield Linear(f"{ours}.shared_expert.fc", (fc,), "column")
            yield Linear(f"{ours}.shared_expert.proj", (down,), "row")
            yield whole("shared_expert_gate", row["shared"]["gate"], 1, None)
