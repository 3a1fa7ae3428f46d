"""The modules of an architecture on each rank, cut as TensorRT-LLM cuts them.

An architecture's row of architectures.json and a checkpoint configuration give every module of a rank, with
its TensorRT-LLM name and the slices of the Hugging Face matrices that it is made of. Conversion reads the
slices, verification the names and shapes. Source: the golden data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.family_layout import FamilyLayout
from enginix.checkpoint.rank_modules import (
    KvCacheModule,
    LinearModule,
    MatrixSlice,
    Module,
    VectorModule,
    split_evenly,
    split_padded,
)
from enginix.errors import CheckpointError
from enginix.model.family_rows import list_family_rows
from enginix.tables import load_table


class CheckpointLayout:
    """All modules of a checkpoint, rank by rank."""

    def __init__(self, config: CheckpointConfig) -> None:
        rows = {**load_table("architectures")["architectures"], **list_family_rows()}
        if config.architecture not in rows:
            raise CheckpointError(
                f"architecture {config.architecture!r} has no known layout; known: {', '.join(sorted(rows))}",
                fix="use one of these: only they can be converted by 'enginix' and checked tensor by tensor",
            )
        self.config = config
        self.row: Mapping[str, Any] = rows[config.architecture]

    def rank(self, rank: int) -> Iterator[Module]:
        """Yield the modules of one rank, layer by layer."""
        if "layout" in self.row:
            yield from FamilyLayout(self.config, self.row).rank(rank)
            return
        c, m = self.config, self.config.mapping
        tp_rank, pp_rank = m.tp_rank(rank), m.pp_rank(rank)
        if pp_rank == 0:
            yield self._embedding(tp_rank)
        for local, index in enumerate(m.layers(pp_rank, c.num_hidden_layers)):
            yield from self._layer(f"transformer.layers.{local}", f"model.layers.{index}", tp_rank)
        if pp_rank == m.pipeline_parallel - 1:
            yield VectorModule("transformer.ln_f", "model.norm", c.hidden_size)
            rows, pad = split_padded(c.vocab_size, m.tensor_parallel, tp_rank)
            head = MatrixSlice("lm_head", c.vocab_size, c.hidden_size, rows, (0, c.hidden_size), pad)
            yield LinearModule("lm_head", ((head,),), "column", quantizable=False)

    def _embedding(self, tp_rank: int) -> LinearModule:
        c, tp = self.config, self.config.mapping.tensor_parallel
        rows, pad, cols = (0, c.vocab_size), 0, (0, c.hidden_size)
        if c.use_parallel_embedding and c.embedding_sharding_dim == 0:
            rows, pad = split_padded(c.vocab_size, tp, tp_rank)
        elif c.use_parallel_embedding:
            cols = split_evenly(c.hidden_size, tp, tp_rank)
        piece = MatrixSlice("model.embed_tokens", c.vocab_size, c.hidden_size, rows, cols, pad)
        return LinearModule("transformer.vocab_embedding", ((piece,),), "column", quantizable=False)

    def _layer(self, trt_name: str, hf_name: str, tp_rank: int) -> Iterator[Module]:
        c = self.config
        yield VectorModule(f"{trt_name}.input_layernorm", f"{hf_name}.input_layernorm", c.hidden_size)
        yield from self._attention(f"{trt_name}.attention", f"{hf_name}.self_attn", tp_rank)
        yield VectorModule(f"{trt_name}.post_layernorm", f"{hf_name}.post_attention_layernorm", c.hidden_size)
        if self.row["mlp"] == "experts":
            yield from self._experts(f"{trt_name}.mlp", hf_name, tp_rank)
        else:
            yield from self._mlp(f"{trt_name}.mlp", f"{hf_name}.mlp", tp_rank)

    def _attention(self, trt_name: str, hf_name: str, tp_rank: int) -> Iterator[Module]:
        c, tp = self.config, self.config.mapping.tensor_parallel
        heads, kv, size, hidden = c.num_attention_heads, c.num_key_value_heads, c.head_size, c.hidden_size
        q = split_evenly(heads * size, tp, tp_rank)
        # With more ranks than KV heads, several ranks hold the same head.
        kv_head_range = (
            split_evenly(kv, tp, tp_rank) if kv >= tp else (tp_rank * kv // tp, tp_rank * kv // tp + 1)
        )
        k = (kv_head_range[0] * size, kv_head_range[1] * size)
        whole = (0, hidden)
        if self.row["attention"] == "fused":
            total = (heads + 2 * kv) * size
            starts = (0, heads * size, (heads + kv) * size)
            qkv = tuple(
                MatrixSlice(f"{hf_name}.qkv_proj", total, hidden, (start + r[0], start + r[1]), whole)
                for start, r in zip(starts, (q, k, k), strict=True)
            )
        else:
            qkv = (
                MatrixSlice(f"{hf_name}.q_proj", heads * size, hidden, q, whole),
                MatrixSlice(f"{hf_name}.k_proj", kv * size, hidden, k, whole),
                MatrixSlice(f"{hf_name}.v_proj", kv * size, hidden, k, whole),
            )
        yield LinearModule(f"{trt_name}.qkv", (qkv,), "column", bias=c.attn_bias)
        if self.row["qkNorm"]:
            yield VectorModule(f"{trt_name}.q_layernorm", f"{hf_name}.q_norm", size)
            yield VectorModule(f"{trt_name}.k_layernorm", f"{hf_name}.k_norm", size)
        dense = MatrixSlice(f"{hf_name}.o_proj", hidden, heads * size, (0, hidden), q)
        yield LinearModule(f"{trt_name}.dense", ((dense,),), "row", bias=c.dense_bias)
        yield KvCacheModule(trt_name, (f"{hf_name}.k_proj", f"{hf_name}.v_proj"))

    def _mlp(self, trt_name: str, hf_name: str, tp_rank: int) -> Iterator[LinearModule]:
        c = self.config
        width, hidden = c.intermediate_size, c.hidden_size
        width_range, whole = split_evenly(width, c.mapping.tensor_parallel, tp_rank), (0, hidden)
        if (
            self.row["mlp"] == "fused"
        ):  # the model has [gate; up] in one matrix, TensorRT-LLM wants [up; gate]
            fused = tuple(
                MatrixSlice(
                    f"{hf_name}.gate_up_proj",
                    2 * width,
                    hidden,
                    (start + width_range[0], start + width_range[1]),
                    whole,
                )
                for start in (width, 0)
            )
            yield LinearModule(f"{trt_name}.fc", (fused,), "column")
        else:
            for name, module in (("fc", "gate_proj"), ("gate", "up_proj")):
                piece = MatrixSlice(f"{hf_name}.{module}", width, hidden, width_range, whole)
                yield LinearModule(f"{trt_name}.{name}", ((piece,),), "column", bias=c.mlp_bias)
        proj = MatrixSlice(f"{hf_name}.down_proj", hidden, width, (0, hidden), width_range)
        yield LinearModule(f"{trt_name}.proj", ((proj,),), "row", bias=c.mlp_bias)

    def _gated(
        self, hf_name: str, names: Mapping[str, str], width: int, row_range: tuple[int, int]
    ) -> tuple[tuple[MatrixSlice, ...], tuple[MatrixSlice, ...]]:
        """Return one expert's slices: [up; gate] and down."""
        hidden = self.config.hidden_size
        fc = tuple(
            MatrixSlice(f"{hf_name}.{names[part]}", width, hidden, row_range, (0, hidden))
            for part in ("up", "gate")
        )
        return fc, (MatrixSlice(f"{hf_name}.{names['down']}", hidden, width, (0, hidden), row_range),)

    def _experts(self, trt_name: str, hf_name: str, tp_rank: int) -> Iterator[LinearModule]:
        c, m, row = self.config, self.config.mapping, self.row["experts"]
        count, width, hidden = c.moe.num_experts, c.moe.intermediate_size, c.hidden_size

        def whole(name: str, module: str, out: int, dtype: str | None) -> LinearModule:
            piece = MatrixSlice(f"{hf_name}.{module}", out, hidden, (0, out), (0, hidden))
            return LinearModule(f"{trt_name}.{name}", ((piece,),), "column", quantizable=False, dtype=dtype)

        yield whole("router", row["router"], count, "float32")
        width_range = split_evenly(width, m.expert_tensor_parallel, tp_rank // m.expert_parallel)
        local = range(*split_evenly(count, m.expert_parallel, tp_rank % m.expert_parallel))
        pairs = [
            self._gated(f"{hf_name}.{row['expert'].format(expert=e)}", row, width, width_range) for e in local
        ]
        yield LinearModule(f"{trt_name}.fc", tuple(fc for fc, _ in pairs), "column", stacked=True)
        yield LinearModule(f"{trt_name}.proj", tuple(down for _, down in pairs), "row", stacked=True)
        if row["shared"]:
            shared = c.moe.shared_intermediate_size
            shared_range = split_evenly(shared, m.tensor_parallel, tp_rank)
            fc, down = self._gated(f"{hf_name}.{row['shared']['expert']}", row, shared, shared_range)
            yield LinearModule(f"{trt_name}.shared_expert.fc", (fc,), "column")
            yield LinearModule(f"{trt_name}.shared_expert.proj", (down,), "row")
            yield whole("shared_expert_gate", row["shared"]["gate"], 1, None)
