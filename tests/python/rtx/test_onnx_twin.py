"""The interpreter's reading of layers, against onnxruntime's execution and NVIDIA's own parser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_twin import make_onnx_twin

from enginix.evaluation.judgement.logits import relative_error
from enginix.kinds.rtx import network_gate
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.network.interpreter import NetworkInterpreter
from enginix.kinds.rtx.network.writer import NetworkWriter

SHAPE = EngineShape(3, 8, 40)


def walk_twin(content: bytes, network: Any, cases: Any) -> list[torch.Tensor]:
    """As network_gate.walk_network, by onnxruntime."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    config, step = network.config, SHAPE.step_tokens
    size = (len(cases), config.num_key_value_heads, SHAPE.cache_length, config.head_size)
    names = [f"{part}_{i}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
    caches = {name: np.zeros(size, np.float32) for name in names}
    lengths, rows = [0] * len(cases), [list(case.pieces()) for case in cases]
    logits: list[list[torch.Tensor]] = [[] for _ in cases]
    outputs = [output.name for output in session.get_outputs()]
    for index in range(max(map(len, rows))):
        ids = np.zeros((len(cases), step), np.int64)
        for row, pieces in enumerate(rows):
            if index < len(pieces):
                ids[row, : len(pieces[index])] = pieces[index]
        first = np.array(lengths, np.int64)
        positions = first[:, None] + np.arange(step)
        answers = session.run(
            None, {"input_ids": ids, "positions": positions, "write_indices": first, **caches}
        )
        values = dict(zip(outputs, answers, strict=True))
        caches = {name: values[f"{name}_next"] for name in names}
        for row, pieces in enumerate(rows):
            if index < len(pieces):
                logits[row].append(torch.from_numpy(values["logits"][row, len(pieces[index]) - 1]))
                lengths[row] += len(pieces[index])
    return [torch.stack(row) for row in logits]


def test_onnxruntime_computes_what_the_interpreter_computes(tiny: Path, describe: Callable[..., Any]) -> None:
    network, _ = describe(tiny, SHAPE)
    tokens = [[(31 * i + row) % 2000 for i in range(60)] for row in range(3)]
    cases = network_gate.make_network_cases(tokens, SHAPE, network_gate.SMALL)
    content = make_onnx_twin(network.config, network.tensors, 3, 8, SHAPE.cache_length)
    interpreter = NetworkInterpreter(network.writer, is_wide=True)
    ours = network_gate.walk_network(interpreter, network, cases)
    theirs = walk_twin(content, network, cases)
    error = max(float(relative_error(a, b).max()) for a, b in zip(ours, theirs, strict=True))
    assert error <= 1e-5


def test_nvidias_parser_reads_the_operators_as_the_layers_of_the_network(
    tiny: Path, trt: Any, describe: Callable[..., Any]
) -> None:
    """Attention, caches and rotations of the ONNX model become the layers that kind rtx adds by name."""
    network, _ = describe(tiny, SHAPE)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    parsed = builder.create_network(0)
    parser = trt.OnnxParser(parsed, logger)
    assert parser.parse(make_onnx_twin(network.config, network.tensors, 3, 8, SHAPE.cache_length))

    def count_kinds(described: Any) -> Counter[str]:
        layers = [described.get_layer(index) for index in range(described.num_layers)]
        return Counter(str(layer.type).rsplit(".", 1)[-1] for layer in layers)

    ours, theirs = count_kinds(network.writer.network), count_kinds(parsed)
    for kind, number in {"ATTENTION_INPUT": 4, "KV_CACHE_UPDATE": 8, "ROTARY_EMBEDDING": 8}.items():
        assert ours[kind] == theirs[kind] == number, kind


def test_a_part_of_a_head_is_rotated_as_onnxruntime_does(trt: Any) -> None:
    """The first 16 of 32 elements, by halves of their own; NVIDIA's parser reads the same."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((2, 3, 5, 32)).astype(np.float32)
    angles = np.arange(40)[:, None] / 10000.0 ** (np.arange(0, 16, 2) / 16)
    tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    positions = generator.integers(0, 40, (2, 5))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
        helper.make_tensor_value_info("positions", TensorProto.INT64, positions.shape),
    ]
    node = helper.make_node(
        "RotaryEmbedding", ["x", "cos", "sin", "positions"], ["y"], rotary_embedding_dim=16
    )
    constants = [numpy_helper.from_array(t, name) for t, name in zip(tables, ("cos", "sin"), strict=True)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)]
    graph = helper.make_graph([node], "rotation", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 24)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=11).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x, "positions": positions})

    writer = NetworkWriter(trt, trt.Logger(trt.Logger.ERROR))
    rotated = writer.rotate(
        writer.add_input("x", np.dtype(np.float32), x.shape),
        *(writer.constant(name, table) for table, name in zip(tables, ("cos", "sin"), strict=True)),
        writer.add_input("positions", np.dtype(np.int32), positions.shape),
        "rotated",
        16,
    )
    writer.mark_output(rotated, "y")
    given = {"x": torch.from_numpy(x), "positions": torch.from_numpy(positions.astype(np.int32))}
    computed = NetworkInterpreter(writer).run(given)["y"]
    torch.testing.assert_close(computed, torch.from_numpy(expected), atol=1e-6, rtol=1e-6)

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    parsed = builder.create_network(0)
    parser = trt.OnnxParser(parsed, logger)
    assert parser.parse(content)
    layers = [parsed.get_layer(index) for index in range(parsed.num_layers)]
    (layer,) = (layer for layer in layers if str(layer.type).endswith("ROTARY_EMBEDDING"))
    layer.__class__ = trt.IRotaryEmbeddingLayer
    assert layer.rotary_embedding_dim == 16 and not layer.interleaved
