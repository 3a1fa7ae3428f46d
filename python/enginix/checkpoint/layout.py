"""The modules of an architecture on each rank, cut as TensorRT-LLM cuts them.

An architecture's row of architectures.json or family_rows.json and a checkpoint configuration give every
module of a rank, with its TensorRT-LLM name and the slices of the Hugging Face matrices that it is made of.
Conversion reads the slices, verification the names and shapes. Source: the golden data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.family_layout import QKV_KINDS, Range, join_neighbours, select_heads, swap_halves
from enginix.checkpoint.latent_attention import list_latent_attention
from enginix.checkpoint.rank_modules import (
    KvCacheModule,
    LinearModule,
    MatrixSlice,
    Module,
    SlicedTensor,
    VectorModule,
    split_evenly,
    split_padded,
)
from enginix.errors import CheckpointError
from enginix.model.family_rows import holds_condition, list_family_rows
from enginix.tables import load_table


def _find_layout(config: CheckpointConfig) -> Mapping[str, Any]:
    """Return the ``layout`` of an architecture; one of architectures.json is put together of its parts.

    Raises:
        CheckpointError: no such architecture.
    """
    table, families = load_table("architectures"), list_family_rows()
    rows = table["architectures"]
    if config.architecture in families:
        return {**families[config.architecture]["layout"]}
    if config.architecture not in rows:
        known = ", ".join(sorted({*rows, *families}))
        raise CheckpointError(
            f"architecture {config.architecture!r} has no known layout; known: {known}",
            fix="use one of these: only they can be converted by 'enginix' and checked tensor by tensor",
        )
    row, parts = rows[config.architecture], table["layouts"]
    layout = {**parts["all"], **parts[row["attention"]], **parts[row["mlp"]]}
    biases = {"qkv": config.attn_bias, "dense": config.dense_bias, "mlp": config.mlp_bias}
    if row["experts"]:
        layout["experts"] = {**row["experts"], "quantizable": True}
    return {**layout, **(parts["qkNorm"] if row["qkNorm"] else {}), "biases": biases}


class CheckpointLayout:
    """All modules of a checkpoint, rank by rank.

    Raises:
        CheckpointError: an architecture without a known layout.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        self.config, self.layout = config, _find_layout(config)

    def linears(self) -> Iterator[LinearModule]:
        """Yield the matrices of every rank."""
        for rank in self.config.mapping.ranks():
            yield from (m for m in self.rank(rank) if isinstance(m, LinearModule))

    def _holds(self, condition: Any) -> bool:
        if isinstance(condition, bool):
            return condition
        conditions = condition if isinstance(condition, list) else [condition]
        return any(holds_condition(c, self.config.raw) for c in conditions)

    def _choose(self, rule: Any) -> str | None:
        """Return the module of a rule: a name, or the first of several whose condition holds."""
        if rule is None or isinstance(rule, str):
            return rule
        options = rule if isinstance(rule, list) else [rule]
        return next((str(o["module"]) for o in options if self._holds(o.get("if", True))), None)

    def _bias(self, part: str) -> bool:
        return self._holds(self.layout["biases"].get(part, False))

    def _matrix(self, module: str, out: int, inp: int, rows: Range, cols: Range, **more: Any) -> MatrixSlice:
        transposed = bool(self.layout.get("transposed"))
        return MatrixSlice(module, out, inp, rows, cols, **{"transposed": transposed, **more})

    def _norm(self, name: str, module: str) -> Iterator[VectorModule]:
        size = self.config.hidden_size
        yield VectorModule(name, module, size, offset=self.layout.get("normOffset", 0))
        if self.layout["normBias"]:
            yield VectorModule(name, module, size, "bias")

    def rank(self, rank: int) -> Iterator[Module]:
        """Yield the modules of one rank, layer by layer."""
        c, m, layout = self.config, self.config.mapping, self.layout
        tp_rank, pp_rank = m.tp_rank(rank), m.pp_rank(rank)
        if pp_rank == 0:
            embedding = self._embedding("vocab_embedding", layout["embedding"], c.vocab_size, 0, tp_rank)
            yield replace(embedding, arithmetic=layout.get("embeddingArithmetic"))
            if positions := layout.get("positions"):
                count, skip = c.max_position_embeddings, positions["skip"]
                yield self._embedding("position_embedding", positions["module"], count, skip, tp_rank)
            if "embeddingNorm" in layout:
                yield from self._norm("transformer.ln_embed", layout["embeddingNorm"])
        for local, index in enumerate(m.layers(pp_rank, c.num_hidden_layers)):
            name, module = f"transformer.layers.{local}", layout["layer"].format(layer=index)
            yield from self._layer(name, module, index, tp_rank)
        if pp_rank == m.pipeline_parallel - 1:
            if norm := self._choose(layout["finalNorm"]):
                yield from self._norm("transformer.ln_f", norm)
            rows, pad = split_padded(c.vocab_size, m.tensor_parallel, tp_rank)
            head = MatrixSlice(layout["head"], c.vocab_size, c.hidden_size, rows, (0, c.hidden_size), pad)
            bias = bool(layout.get("headBias"))
            rule = layout.get("headArithmetic")
            arithmetic = rule["name"] if rule and self._holds(rule["if"]) else None
            yield LinearModule(
                "lm_head", ((head,),), "column", bias=bias, quantizable=False, arithmetic=arithmetic
            )

    def _embedding(self, name: str, module: str, count: int, skip: int, tp_rank: int) -> LinearModule:
        c, tp = self.config, self.config.mapping.tensor_parallel
        rows, pad, cols = (0, count), 0, (0, c.hidden_size)
        if c.use_parallel_embedding and c.embedding_sharding_dim == 0:
            rows, pad = split_padded(count, tp, tp_rank)
        elif c.use_parallel_embedding:
            cols = split_evenly(c.hidden_size, tp, tp_rank)
        rows = (rows[0] + skip, rows[1] + skip)
        piece = MatrixSlice(module, count + skip, c.hidden_size, rows, cols, pad)
        return LinearModule(f"transformer.{name}", ((piece,),), "column", quantizable=False)

    def _is_recurrent(self, index: int) -> bool:
        kinds = self.config.raw.get("layer_types")
        if "recurrent" not in self.layout or not isinstance(kinds, list) or not kinds:
            return False
        return bool(kinds[index % len(kinds)] == "recurrent")

    def _layer(self, trt_name: str, hf_name: str, index: int, tp_rank: int) -> Iterator[Module]:
        for name, rule in self.layout["norms"].items():
            if module := self._choose(rule):
                yield from self._norm(f"{trt_name}.{name}", f"{hf_name}.{module}")
        if self._is_recurrent(index):
            yield from self._recurrence(f"{trt_name}.recurrent", hf_name, tp_rank)
        elif "latent" in self.layout:
            module = f"{hf_name}.{self.layout['latent']}"
            yield from list_latent_attention(self.config, f"{trt_name}.attention", module, tp_rank)
        else:
            yield from self._attention(f"{trt_name}.attention", hf_name, tp_rank)
        if index >= self.layout.get("experts", {}).get("dense", 0) and "experts" in self.layout:
            yield from self._experts(f"{trt_name}.mlp", hf_name, tp_rank)
        else:
            yield from self._mlp(f"{trt_name}.mlp", hf_name, tp_rank)

    def _attention(self, trt_name: str, hf_name: str, tp_rank: int) -> Iterator[Module]:
        c, rule = self.config, self.layout["qkv"]
        heads, kv, size, hidden = c.num_attention_heads, c.num_key_value_heads, c.head_size, c.hidden_size
        q_heads, kv_heads = select_heads(heads, kv, c.mapping.tensor_parallel, tp_rank)
        counts = (heads, kv, kv)
        slices = join_neighbours(QKV_KINDS[rule["kind"]](counts, (q_heads, kv_heads, kv_heads)))
        outs = [n * size for n in counts] if rule["kind"] == "split" else [sum(counts) * size]
        qkv = tuple(
            self._matrix(
                f"{hf_name}.{rule['modules'][number]}",
                outs[number],
                hidden,
                (begin * size, end * size),
                (0, hidden),
            )
            for number, (begin, end) in slices
        )
        yield LinearModule(f"{trt_name}.qkv", (qkv,), "column", bias=self._bias("qkv"))
        norms = self.layout.get("qkNorm")
        if norms and norms.get("shared"):  # by every head
            for name in ("q", "k"):
                yield VectorModule(f"{trt_name}.{name}_layernorm", f"{hf_name}.{norms[name]}", size)
        elif norms and self._holds(norms["if"]):
            for name, count, part in (("q", heads, q_heads), ("k", kv, kv_heads)):
                piece = MatrixSlice(f"{hf_name}.{norms[name]}", count, size, part, (0, size))
                yield LinearModule(f"{trt_name}.{name}_layernorm", ((piece,),), "column", quantizable=False)
        q = (q_heads[0] * size, q_heads[1] * size)
        dense = self._matrix(f"{hf_name}.{self.layout['dense']}", hidden, heads * size, (0, hidden), q)
        yield LinearModule(f"{trt_name}.dense", ((dense,),), "row", bias=self._bias("dense"))
        # ModelOpt names the scales so where q, k and v are one matrix, too.
        block = f"{hf_name}.{rule['modules'][0].rpartition('.')[0]}"
        yield KvCacheModule(trt_name, (f"{block}.k_proj", f"{block}.v_proj"))

    def _recurrence(self, trt_name: str, hf_name: str, tp_rank: int) -> Iterator[Module]:
        """Yield RecurrentGemma's block: two projections, a convolution, gates of each head, a projection."""
        c, tp = self.config, self.config.mapping.tensor_parallel
        module, hidden = f"{hf_name}.{self.layout['recurrent']}", c.hidden_size
        width, taps = int(c.raw["rnn_hidden_size"]), int(c.raw["conv_kernel"])
        part, heads = split_evenly(width, tp, tp_rank), c.num_attention_heads
        block = width // heads
        for name in ("linear_x", "linear_y"):
            piece = MatrixSlice(f"{module}.{name}", width, hidden, part, (0, hidden))
            bias = name == "linear_x"  # the class adds linear_y's inside its own kernel
            yield LinearModule(f"{trt_name}.{name}", ((piece,),), "column", bias=bias, quantizable=False)
        piece = MatrixSlice(f"{module}.linear_out", hidden, width, (0, hidden), part)
        yield LinearModule(f"{trt_name}.linear_out", ((piece,),), "row", bias=True, quantizable=False)
        size = (part[1] - part[0],)
        vectors = (
            ("y_bias", "linear_y", "bias"),
            ("conv1d.bias", "conv_1d", "bias"),
            ("rg_lru.recurrent_param", "rg_lru", "recurrent_param"),
        )
        for name, inner, leaf in vectors:
            yield SlicedTensor(f"{trt_name}.{name}", f"{module}.{inner}", leaf, (width,), (part,), size)
        source = (f"{module}.conv_1d", "weight", (width, 1, taps))
        yield SlicedTensor(f"{trt_name}.conv1d.weight", *source, (part,), (*size, 1, taps, 1))
        gates = split_evenly(heads, tp, tp_rank)
        tails: dict[str, tuple[int, ...]] = {"weight": (block, block), "bias": (block,)}
        for gate in ("input_gate", "recurrent_gate"):
            for leaf, tail in tails.items():
                name, stored = f"{trt_name}.rg_lru.{gate}.{leaf}", (heads, *tail)
                shape = (gates[1] - gates[0], *tail)
                yield SlicedTensor(name, f"{module}.rg_lru", f"{gate}_{leaf}", stored, (gates,), shape)

    def _mlp(self, trt_name: str, hf_name: str, tp_rank: int) -> Iterator[LinearModule]:
        c, names = self.config, self.layout["mlp"]
        width, hidden = c.intermediate_size // self.layout.get("widthDivisor", 1), c.hidden_size
        part, whole = split_evenly(width, c.mapping.tensor_parallel, tp_rank), (0, hidden)
        bias = self._bias("mlp")
        for name in ("fc", "gate"):
            if name in names:
                wide = self.layout.get("fcWidth", 1)  # 2: two columns of the MLP follow each other
                rows = (wide * part[0], wide * part[1])
                piece = self._matrix(f"{hf_name}.{names[name]}", wide * width, hidden, rows, whole)
                yield LinearModule(f"{trt_name}.{name}", ((piece,),), "column", bias=bias)
        if "fused" in names:
            fused = tuple(
                self._matrix(f"{hf_name}.{names['fused']}", 2 * width, hidden, rows, whole)
                for rows in swap_halves(width, part)
            )
            yield LinearModule(f"{trt_name}.fc", (fused,), "column", bias=bias)
        proj = self._matrix(f"{hf_name}.{names['proj']}", hidden, width, whole, part)
        # One all-reduce sums attention and MLP of these classes: the bias may be added once.
        zero_bias = bool(self.layout.get("projBiasOnFirstRank")) and tp_rank > 0
        yield LinearModule(f"{trt_name}.proj", ((proj,),), "row", bias=bias, zero_bias=zero_bias)

    def _experts(self, trt_name: str, hf_name: str, tp_rank: int) -> Iterator[LinearModule]:
        c, m, names = self.config, self.config.mapping, self.layout["experts"]
        count, width, whole = c.moe.num_experts, c.moe.intermediate_size, (0, c.hidden_size)
        quantizable = bool(names.get("quantizable"))
        router = MatrixSlice(f"{hf_name}.{names['router']}", count, c.hidden_size, (0, count), whole)
        yield LinearModule(f"{trt_name}.router", ((router,),), "column", quantizable=False, dtype="float32")
        part = split_evenly(width, m.expert_tensor_parallel, tp_rank // m.expert_parallel)
        fc, proj = [], []
        for expert in range(*split_evenly(count, m.expert_parallel, tp_rank % m.expert_parallel)):
            module = f"{hf_name}.{names['module']}"
            if "{expert}" in module:  # matrices of each expert
                up_and_gate, down = self._gated(module.format(expert=expert), width, part)
            else:
                rows = (expert * width + part[0], expert * width + part[1])
                piece = MatrixSlice(module, count * width, c.hidden_size, rows, whole)
                up_and_gate = tuple(replace(piece, leaf=names[n]) for n in ("up", "gate"))
                turned = MatrixSlice(module, c.hidden_size, count * width, whole, rows, transposed=True)
                down = replace(turned, leaf=names["down"])
            fc.append(up_and_gate)
            proj.append((down,))
        yield LinearModule(f"{trt_name}.fc", tuple(fc), "column", stacked=True, quantizable=quantizable)
        yield LinearModule(f"{trt_name}.proj", tuple(proj), "row", stacked=True, quantizable=quantizable)
        if shared := names.get("shared"):
            width, name = c.moe.shared_intermediate_size, f"{trt_name}.shared_expert"
            part = split_evenly(width, m.tensor_parallel, tp_rank)
            up_and_gate, down = self._gated(f"{hf_name}.{shared['module']}", width, part)
            yield LinearModule(f"{name}.fc", (up_and_gate,), "column", quantizable=quantizable)
            yield LinearModule(f"{name}.proj", ((down,),), "row", quantizable=quantizable)
            if "gate" in shared:
                gate = MatrixSlice(f"{hf_name}.{shared['gate']}", 1, c.hidden_size, (0, 1), whole)
                yield LinearModule(f"{name}_gate", ((gate,),), "column", quantizable=False)

    def _gated(self, module: str, width: int, part: Range) -> tuple[tuple[MatrixSlice, ...], MatrixSlice]:
        """Return one expert's slices: [up; gate] and down."""
        names, hidden = self.layout["experts"], self.config.hidden_size
        up_and_gate = tuple(
            MatrixSlice(f"{module}.{names[n]}", width, hidden, part, (0, hidden)) for n in ("up", "gate")
        )
        return up_and_gate, MatrixSlice(f"{module}.{names['down']}", hidden, width, (0, hidden), part)
