"""The same operators as an ONNX model of opset 24: onnxruntime executes it, and NVIDIA's parser reads it.

It is written from ONNX's documentation of the operators, and shares nothing with the network of kind rtx
but the checkpoint's tensors. onnxruntime has no bfloat16 products, so all is float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.mapped_tensors import RankFile


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.count = 0

    def constant(self, array: Any) -> str:
        self.count += 1
        name = f"constant_{self.count}"
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def apply(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        self.count += 1
        name = output or f"{operator}_{self.count}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"node_{self.count}", **attributes))
        return name


def make_onnx_twin(config: CheckpointConfig, tensors: RankFile, slots: int, step: int, length: int) -> bytes:
    """Return a Qwen3 decoder as an ONNX model with a cache of ``length`` positions, all sizes static."""
    graph, c = _Graph(), config
    size, heads, kv_heads = c.head_size, c.num_attention_heads, c.num_key_value_heads

    def weight(name: str) -> Any:
        return np.asarray(tensors[name]).astype(np.float32)

    def multiply(x: str, matrix: Any) -> str:
        return graph.apply("MatMul", [x, graph.constant(matrix.T)])

    def normalize(x: str, name: str) -> str:
        scale = graph.constant(weight(name))
        return graph.apply("RMSNormalization", [x, scale], axis=-1, epsilon=c.norm_epsilon)

    def split(x: str, count: int) -> str:
        shape = graph.constant(np.array([slots, step, count, size], np.int64))
        return graph.apply("Transpose", [graph.apply("Reshape", [x, shape])], perm=[0, 2, 1, 3])

    cache_shape = [slots, kv_heads, length, size]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [slots, step]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, [slots, step]),
        helper.make_tensor_value_info("write_indices", TensorProto.INT64, [slots]),
    ]
    outputs = []
    row = graph.apply("Unsqueeze", ["positions", graph.constant(np.array([1, 3], np.int64))])
    columns = graph.constant(np.arange(length, dtype=np.int64).reshape(1, 1, 1, -1))
    mask = graph.apply("LessOrEqual", [columns, row])
    angles = np.arange(length)[:, None] / c.rotary_base ** (np.arange(0, size, 2) / size)
    tables = [graph.constant(np.float32(f(angles))) for f in (np.cos, np.sin)]
    x = graph.apply("Gather", [graph.constant(weight("transformer.vocab_embedding.weight")), "input_ids"])
    for layer in range(c.num_hidden_layers):
        name = f"transformer.layers.{layer}"
        h = normalize(x, f"{name}.input_layernorm.weight")
        parts = np.split(weight(f"{name}.attention.qkv.weight"), [heads * size, (heads + kv_heads) * size])
        q, k, v = (split(multiply(h, p), n) for p, n in zip(parts, (heads, kv_heads, kv_heads), strict=True))
        q, k = (
            graph.apply(
                "RotaryEmbedding", [normalize(z, f"{name}.attention.{n}.weight"), *tables, "positions"]
            )
            for z, n in ((q, "q_layernorm"), (k, "k_layernorm"))
        )
        cached = []
        for part, update in (("key", k), ("value", v)):
            cache, following = f"{part}_{layer}", f"{part}_{layer}_next"
            inputs.append(helper.make_tensor_value_info(cache, TensorProto.FLOAT, cache_shape))
            outputs.append(helper.make_tensor_value_info(following, TensorProto.FLOAT, cache_shape))
            words = [cache, update, "write_indices"]
            cached.append(graph.apply("TensorScatter", words, following, axis=2, mode="linear"))
        attended = graph.apply("Transpose", [graph.apply("Attention", [q, *cached, mask])], perm=[0, 2, 1, 3])
        width = graph.constant(np.array([slots, step, heads * size], np.int64))
        dense = multiply(graph.apply("Reshape", [attended, width]), weight(f"{name}.attention.dense.weight"))
        x = graph.apply("Add", [x, dense])
        h = normalize(x, f"{name}.post_layernorm.weight")
        gate, up = (multiply(h, weight(f"{name}.mlp.{n}.weight")) for n in ("fc", "gate"))
        active = graph.apply("Mul", [graph.apply("Mul", [gate, graph.apply("Sigmoid", [gate])]), up])
        x = graph.apply("Add", [x, multiply(active, weight(f"{name}.mlp.proj.weight"))])
    x = multiply(normalize(x, "transformer.ln_f.weight"), weight("lm_head.weight"))
    graph.apply("Identity", [x], "logits")
    outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [slots, step, c.vocab_size]))
    model = helper.make_model(
        helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.tensors),
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=11,
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content
