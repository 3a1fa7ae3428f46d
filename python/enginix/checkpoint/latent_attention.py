"""Multi-head latent attention: the tensors of TensorRT-LLM 0.17's class, and the product that it absorbs.

It is code and not a row: one of its tensors is a matrix product of two of the model's.
"""

from __future__ import annotations

from collections.abc import Iterator

from enginix.checkpoint.byte_sources import SourceFileReader, refuse_overflow
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.products import multiply_in_order, read_rows
from enginix.checkpoint.rank_modules import (
    AbsorbedQueries,
    LinearModule,
    MatrixSlice,
    Module,
    SlicedTensor,
    VectorModule,
    split_evenly,
)
from enginix.model import TensorInfo


def list_latent_attention(
    config: CheckpointConfig, trt_name: str, module: str, tp_rank: int
) -> Iterator[Module]:
    """Yield the modules of one layer's latent attention on a rank.

    Source: convert.py of TensorRT-LLM 0.17's deepseek_v2.
    """
    raw, hidden, total = config.raw, config.hidden_size, config.num_attention_heads
    nope, rope, value = (int(raw[key]) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    rank, query_rank = int(raw["kv_lora_rank"]), raw.get("q_lora_rank")
    first, last = split_evenly(total, config.mapping.tensor_parallel, tp_rank)
    heads, size, pair, whole = range(first, last), nope + rope, nope + value, (0, hidden)
    latent = MatrixSlice(f"{module}.kv_a_proj_with_mqa", rank + rope, hidden, (0, rank + rope), whole)
    inp, query, down = hidden, f"{module}.q_proj", [latent]
    if query_rank is not None:
        inp, query = int(query_rank), f"{module}.q_b_proj"
        down.insert(0, MatrixSlice(f"{module}.q_a_proj", inp, hidden, (0, inp), whole))
        yield VectorModule(f"{trt_name}.q_a_layernorm", f"{module}.q_a_layernorm", inp)
    yield LinearModule(f"{trt_name}.fused_a", (tuple(down),), "column", quantizable=False)
    yield VectorModule(f"{trt_name}.kv_a_layernorm", f"{module}.kv_a_layernorm", rank)
    queries = tuple((head * size, (head + 1) * size) for head in heads)
    keys = tuple((head * pair, head * pair + nope) for head in heads)
    values = tuple((head * pair + nope, (head + 1) * pair) for head in heads)
    source = (query, "weight", (total * size, inp))
    up = MatrixSlice(f"{module}.kv_b_proj", total * pair, rank, (0, total * pair), (0, rank))
    shape = (len(heads) * (rank + rope), inp)
    yield AbsorbedQueries(f"{trt_name}.fused_q_proj", *source, queries, shape, up, keys)
    yield SlicedTensor(f"{trt_name}.q_b_proj", *source, queries, (len(heads) * size, inp))
    yield SlicedTensor(
        f"{trt_name}.kv_b_proj",
        up.module,
        up.leaf,
        up.stored_shape,
        (*keys, *values),
        (len(heads) * pair, rank),
    )
    dense = MatrixSlice(f"{module}.o_proj", hidden, total * value, whole, (first * value, last * value))
    yield LinearModule(f"{trt_name}.dense", ((dense,),), "row", quantizable=False)


def absorb_keys(
    module: AbsorbedQueries, queries: TensorInfo, keys: TensorInfo, code: str, reader: SourceFileReader
) -> Iterator[bytes]:
    """Yield the bytes of :class:`AbsorbedQueries`, head by head.

    Raises:
        ModelError: a weight or a sum does not fit the dtype, or is not finite.
    """
    for rows, key_rows in zip(module.ranges, module.key_ranges, strict=True):
        query = read_rows(queries, rows, code, reader)
        nope = key_rows[1] - key_rows[0]
        with refuse_overflow(module.name, queries.path):
            key = read_rows(keys, key_rows, code, reader)
            yield from multiply_in_order(key, query[:nope], code)
        yield query[nope:].tobytes()
