"""NVFP4: the network has the numbers of NVIDIA's ModelOpt, in the layers of ModelOpt's export for TensorRT.

Judges: ModelOpt's tensors (NVFP4QTensor), transformers, and NVIDIA's parser of an ONNX model that is written
as ModelOpt writes one (modelopt/onnx/export/nvfp4_exporter.py, modelopt/torch/quantization/export_onnx.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.evaluation.judgement.logits import relative_error
from enginix.evaluation.reference_answers import hf
from enginix.kinds.rtx import network_gate
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.network.interpreter import NetworkInterpreter, round_to_fp4
from enginix.kinds.rtx.network.quantized_products import multiply_by_module
from enginix.kinds.rtx.network.writer import NetworkWriter

TINY = Path(__file__).resolve().parents[2] / "models/tiny-qwen3"
SHAPE = EngineShape(4, 8, 60)
BLOCKS = {-1: 16}
ROWS, COLUMNS, TOKENS = 48, 64, 5


def make_activations() -> torch.Tensor:
    """Numbers of several magnitudes, a block of zeros, a tiny block, and halves between two codes."""
    x = torch.randn(2, TOKENS, COLUMNS, generator=torch.Generator().manual_seed(4)) * 3
    x[0, 0, :16], x[0, 1, :16] = 0, x[0, 1, :16] * 1e-7
    x[1, 0, :16] = torch.tensor([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -5, 0, 1, 2, 4])
    return x


# With the first, the block of halves has the scale 1, and larger ones are beyond the largest scale.
@pytest.mark.parametrize("divisor", [448, 60])
def test_activations_are_rounded_as_modelopt_does(trt: Any, divisor: int) -> None:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    x, unit = make_activations(), torch.tensor(1 / divisor)
    codes, scales, _ = NVFP4QTensor.quantize(x.clone(), 16, None, unit)
    expected = codes.dequantize(torch.float32, scale=scales, double_scale=unit, block_sizes=BLOCKS)

    writer = NetworkWriter(trt, trt.Logger(trt.Logger.ERROR))
    scale = writer.constant("unit", unit.numpy())
    given = writer.add_input("x", np.dtype(np.float32), tuple(x.shape))
    coded, block_scales = writer.quantize_blocks(given, scale, "codes")
    wide = writer.dequantize(block_scales, scale, trt.float32, "scales")
    writer.mark_output(writer.dequantize(coded, wide, trt.float32, "rounded"), "y")
    computed = NetworkInterpreter(writer).run({"x": x})["y"]
    torch.testing.assert_close(computed, expected, atol=0, rtol=1e-6)
    assert computed.unique().numel() > 50


def test_halves_between_two_codes_go_to_the_even_one() -> None:
    halves = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, -0.25, -5.0])
    assert round_to_fp4(halves).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, -0.0, -4.0]


@pytest.mark.parametrize("form", ["trtllm", "modelopt"])
def test_networks_equal_transformers_with_modelopts_weights(
    quantized: Callable[[str], Path], describe: Callable[..., Any], tmp_path: Path, form: str
) -> None:
    """Both forms of a checkpoint; activations are not rounded on either side."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    export = quantized("NVFP4").parent / "hf"
    convert_model(export, tmp_path / "checkpoint", ConvertOptions(nvfp4_form=form))
    tensors = load_file(export / "model.safetensors")
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.uint8:
            shape = torch.Size((len(tensor), tensor.shape[1] * 2))
            packed = NVFP4QTensor(shape, torch.float32, tensor)
            scale, unit = tensors[f"{name}_scale"], tensors[f"{name}_scale_2"]
            plain[name] = packed.dequantize(scale=scale, double_scale=unit, block_sizes=BLOCKS)
        elif "scale" not in name.rpartition(".")[2]:
            plain[name] = tensor.float()
    assert sum(t.dtype == torch.uint8 for t in tensors.values()) == 28
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    save_file(plain, model / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))

    network, _ = describe(tmp_path / "checkpoint", SHAPE)
    tokens = [[(31 * i + row) % 2000 for i in range(60)] for row in range(4)]
    cases = network_gate.make_network_cases(tokens, SHAPE, network_gate.SMALL)
    interpreter = NetworkInterpreter(network.writer, is_wide=True, rounds_codes=False)
    computed = network_gate.walk_network(interpreter, network, cases)
    whole = hf.compute_hf_logits(model, [case.tokens for case in cases])
    expected = [rows[[end - 1 for end in case.ends]] for rows, case in zip(whole, cases, strict=True)]
    error = max(float(relative_error(a, b).max()) for a, b in zip(computed, expected, strict=True))
    assert error <= 1e-5


def make_product(rng: np.random.Generator) -> dict[str, Any]:
    """Return the tensors of a module in ModelOpt's form."""
    import ml_dtypes

    blocks = rng.integers(8, 112, (ROWS, COLUMNS // 16)).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)
    return {
        "weight": rng.integers(0, 256, (ROWS, COLUMNS // 2), dtype=np.uint8),
        "weights_scaling_factor": blocks,
        "weights_scaling_factor_2": np.float32(0.02).reshape(()),
        "activation_scaling_factor": np.float32(0.01).reshape(()),
    }


def make_onnx_product(leaves: dict[str, Any]) -> bytes:
    """Return the product as ModelOpt exports it: block scales, then codes, are dequantized, then cast."""
    unit, activation = leaves["weights_scaling_factor_2"], leaves["activation_scaling_factor"]
    block, half = {"axis": -1, "block_size": 16}, TensorProto.FLOAT16
    custom = {"domain": "trt", "scale_type": TensorProto.FLOAT8E4M3FN}
    words = [
        ("TRT_FP4DynamicQuantize", ["x", "activation"], ["codes", "scales"], {**block, **custom}),
        ("DequantizeLinear", ["scales", "activation"], ["wide_scales"], {}),
        ("DequantizeLinear", ["codes", "wide_scales"], ["rounded"], block),
        ("Cast", ["rounded"], ["narrow"], {"to": half}),
        ("DequantizeLinear", ["blocks", "unit"], ["wide_blocks"], {}),
        ("DequantizeLinear", ["weight", "wide_blocks"], ["matrix"], block),
        ("Cast", ["matrix"], ["narrow_matrix"], {"to": half}),
        ("Transpose", ["narrow_matrix"], ["transposed"], {"perm": [1, 0]}),
        ("MatMul", ["narrow", "transposed"], ["y"], {}),
    ]
    nodes = [
        helper.make_node(kind, ins, outs, name=f"n{i}", **more)
        for i, (kind, ins, outs, more) in enumerate(words)
    ]
    shape = [ROWS, COLUMNS]
    tensors = [
        helper.make_tensor("weight", TensorProto.FLOAT4E2M1, shape, leaves["weight"].tobytes(), raw=True),
        helper.make_tensor(
            "blocks",
            TensorProto.FLOAT8E4M3FN,
            [ROWS, COLUMNS // 16],
            leaves["weights_scaling_factor"].tobytes(),
            raw=True,
        ),
        numpy_helper.from_array(unit, "unit"),
        numpy_helper.from_array(activation, "activation"),
    ]
    given = helper.make_tensor_value_info("x", half, [2, TOKENS, COLUMNS])
    output = helper.make_tensor_value_info("y", half, [2, TOKENS, ROWS])
    graph = helper.make_graph(nodes, "product", [given], [output], tensors)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    return content


def list_chain(trt: Any, network: Any) -> list[tuple[Any, ...]]:
    """Return what each layer of a quantized product is, in the order of their inputs."""
    chain = list[tuple[Any, ...]]()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = str(layer.type).rsplit(".", 1)[-1]
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        types = tuple(str(t.dtype).rsplit(".", 1)[-1] for t in inputs if t is not None)
        made = tuple(str(layer.get_output(i).dtype).rsplit(".", 1)[-1] for i in range(layer.num_outputs))
        if kind == "DYNAMIC_QUANTIZE":
            layer.__class__ = trt.IDynamicQuantizeLayer
            chain.append((kind, types, made, layer.axis % 3, layer.block_size))
        elif kind in ("DEQUANTIZE", "CAST"):
            chain.append((kind, types, made))
    return sorted(chain, key=str)


def test_nvidias_parser_reads_modelopts_export_as_these_layers(trt: Any) -> None:
    """The same layers with the same types; and the builder makes of both the same packed weights."""
    leaves = make_product(np.random.default_rng(7))
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    parsed = builder.create_network(0)
    parser = trt.OnnxParser(parsed, logger)
    assert parser.parse(make_onnx_product(leaves)), [parser.get_error(i) for i in range(parser.num_errors)]

    writer = NetworkWriter(trt, logger)
    x = writer.add_input("x", np.dtype(np.float16), (2, TOKENS, COLUMNS))
    y = multiply_by_module(writer, x, "NVFP4", leaves, slice(0, ROWS), np.dtype(np.float16), "product")
    writer.mark_output(y, "y")
    assert list_chain(trt, writer.network) == list_chain(trt, parsed)

    def build(network: Any, builder: Any) -> bytes:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM120, 0)
        return bytes(builder.build_serialized_network(network, config))

    # By ONNX's specification the low half of a byte is the first number, and both plans hold the same bytes.
    codes = leaves["weight"].tobytes()
    assert codes in build(parsed, builder) and codes in build(writer.network, writer.builder)
