"""The interpreter's reading of layers, against onnxruntime's execution and NVIDIA's own parser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx_twin import make_onnx_twin

from enginix.evaluation.judgement.logits import relative_error
from enginix.kinds.rtx import network_gate
from enginix.kinds.rtx.engine_shape import EngineShape
from enginix.kinds.rtx.network.interpreter import NetworkInterpreter

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
