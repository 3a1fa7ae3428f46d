"""Compare an export with the model it was made from: files, attention, quantization, weights, texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from enginix.errors import ModelError
from enginix.kinds.edgellm import coverage, graph, graph_contract, scales
from enginix.kinds.edgellm.errors import make_mismatch, refuse_differences
from enginix.kinds.edgellm.graph import Graph, Node
from enginix.kinds.edgellm.runtime_config import compare_runtime_config, is_window_right
from enginix.kinds.edgellm.source import ExportSource
from enginix.kinds.edgellm.tokenizer_texts import SETTINGS_FILE, TEMPLATE_FILE
from enginix.kinds.edgellm.values import FLOAT_DTYPES
from enginix.model import TensorInfo, read_header
from enginix.model.jsonfile import read_object
from enginix.model.mapped_tensors import map_tensor
from enginix.model.number_formats import read_algorithms
from enginix.tables import load_table

# The exporter's RUNTIME_TOKENIZER_FILENAMES (checkpoint_utils.py): copied where the model has them.
COPIED_TEXTS = ("tokenizer.json", SETTINGS_FILE, "tokenizer.model", "special_tokens_map.json")
_PASSING_OPS = ("Cast", "Reshape", "Transpose", "DequantizeLinear")


def list_exported_files(llm: Path) -> list[str]:
    """List the names of the export's files, after checking that they are the expected ones and not empty."""
    for name in load_table("edgellm")["exportedFiles"]:
        path = llm / name
        if not path.is_file() or path.stat().st_size == 0:
            raise make_mismatch(f"{name} is missing or empty", llm)
    names = sorted(p.name for p in llm.iterdir())
    strange = sorted(set(names) - set(load_table("edgellm")["exportedFiles"]) - set(COPIED_TEXTS))
    if strange:
        raise make_mismatch(f"{strange[0]} is no file that an export of this model has", llm)
    return names


def find_attention_differences(onnx_graph: Graph, source: ExportSource) -> Iterator[str]:
    """Yield layers without one attention plugin that has a KV cache of its own and the model's parameters."""
    nodes = [n for n in onnx_graph.nodes if n.op == "AttentionPlugin" and n.domain == graph.PLUGIN_DOMAIN]
    if len(nodes) != source.model.num_layers:
        yield f"{len(nodes)} attention plugins for {source.model.num_layers} layers"
    model = source.model
    has_norms = "model.layers.0.self_attn.q_norm.weight" in source.weights.tensors
    expected: dict[str, Any] = {
        "num_q_heads": model.num_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_size": model.head_dim,
        "enable_fp8_kv_cache": int(source.kv_cache == "FP8"),
        "enable_qk_norm": int(has_norms),
    }
    numbers = {"attention_scale": model.head_dim**-0.5}
    if has_norms:
        numbers["rms_norm_eps"] = model.norm_epsilon
    for node in nodes:
        for key, number in numbers.items():
            stated = node.attributes.get(key)
            if not isinstance(stated, float) or np.float32(stated) != np.float32(number):
                yield f"{node.name}: {key} is {stated}, the model's is {np.float32(number)}"
        for key, value in expected.items():
            if node.attributes.get(key) != value:
                yield f"{node.name}: {key} is {node.attributes.get(key)}, the model's is {value}"
        window = node.attributes.get("sliding_window_size")
        if not is_window_right(window, model):
            yield f"{node.name}: sliding_window_size is {window}, the model's is {model.sliding_window}"
    for layer in range(source.model.num_layers):
        past, present = f"past_key_values_{layer}", f"present_key_values_{layer}"
        readers = [n for n in nodes if past in n.inputs]
        if len(readers) != 1 or past not in onnx_graph.inputs:
            yield f"layer {layer} has no KV cache of its own ({past})"
        elif present not in onnx_graph.outputs or present not in readers[0].outputs:
            yield f"layer {layer} does not return its KV cache ({present})"


def _reaches_op(onnx_graph: Graph, value: str, ops: tuple[str, ...], steps: int = 8) -> bool:
    node = onnx_graph.producer.get(value)
    if node is None or steps == 0:
        return False
    if node.op in ops:
        return True
    return node.op in _PASSING_OPS and _reaches_op(onnx_graph, node.inputs[0], ops, steps - 1)


def _find_products(onnx_graph: Graph, node: Node, steps: int = 6) -> list[tuple[Node, str]]:
    """Find the matrix products that a dequantized weight flows into, with the name of their input."""
    ends: list[tuple[Node, str]] = []
    for out in node.outputs:
        for reader in onnx_graph.consumers.get(out, ()):
            if reader.op in ("MatMul", "Gemm"):
                ends.append((reader, out))
            elif reader.op in _PASSING_OPS and steps:
                ends += _find_products(onnx_graph, reader, steps - 1)
    return ends


def check_quantization(onnx_graph: Graph, source: ExportSource) -> dict[str, int]:
    """Check that each quantized weight is read by its format's operator and meets quantized activations."""
    if source.quantization is None:
        stray = onnx_graph.count("DequantizeLinear") + onnx_graph.count("QuantizeLinear")
        if stray:
            raise make_mismatch(
                f"{stray} quantization nodes in a model that is not quantized", onnx_graph.path
            )
        return {}
    row = read_algorithms()[source.quantization]["edgellm"]
    readers, activations = tuple(row["readers"]), tuple(row["activations"])
    constants = onnx_graph.constants.values()
    weights = [c for c in constants if c.dtype == row["weights"] and _is_weight(onnx_graph, c.name)]
    matrices = [t for t in source.weights.tensors.values() if t.name.endswith(".weight")]
    stored = [t for t in matrices if t.dtype not in FLOAT_DTYPES]
    # Joined projections keep the number of bytes; a plugin's padded layout keeps the number of weights.
    joinable = "DequantizeLinear" in readers
    graph_count = sum(c.data.size for c in weights) if joinable else len(weights)
    needed = sum(t.nbytes for t in stored) if joinable else len(stored)
    if not stored or graph_count != needed:
        counted = f"{graph_count} {'bytes of ' * joinable}{source.quantization} weights"
        raise make_mismatch(f"{counted} in the graph, {needed} in the checkpoint", onnx_graph.path)
    for weight in weights:
        for reader in onnx_graph.consumers.get(weight.name, ()):
            if reader.op not in readers:
                raise make_mismatch(f"{weight.name} is read by {reader.op}", onnx_graph.path)
            products = _find_products(onnx_graph, reader) if activations else []
            for product, input_name in products:
                others = [i for i in product.inputs if i != input_name]
                if not any(_reaches_op(onnx_graph, other, activations) for other in others):
                    what = f"{weight.name} meets activations that are not quantized ({product.name})"
                    raise make_mismatch(what, onnx_graph.path)
            if activations and not products:
                raise make_mismatch(f"{weight.name} flows into no matrix product", onnx_graph.path)
    counts = {op: onnx_graph.count(op) for op in (*readers, *activations)}
    return {op: n for op, n in counts.items() if n}


def _is_weight(onnx_graph: Graph, name: str) -> bool:
    """Tell whether a constant is a weight, not a scale, which dequantizations read as second input."""
    if len(onnx_graph.constants[name].shape) < 2:
        return False
    return not any(
        name in n.inputs[1:] for n in onnx_graph.consumers.get(name, ()) if n.op == "DequantizeLinear"
    )


def check_texts(llm: Path, source: ExportSource) -> None:
    """Check that the texts are the model's byte for byte."""
    if (llm / TEMPLATE_FILE).read_bytes() != source.texts.template.encode():
        raise make_mismatch(f"{TEMPLATE_FILE} is not the model's", llm)
    for name in COPIED_TEXTS:
        exported, stored = (
            path.read_bytes() if path.is_file() else None for path in (llm / name, source.directory / name)
        )
        if exported != stored and not (name == SETTINGS_FILE and _is_without_template(llm, source.directory)):
            raise make_mismatch(f"{name} is not the model's", llm)


def read_runtime_config(directory: Path) -> dict[str, Any]:
    """Read the ``config.json`` of an export or an engine.

    Raises:
        ExportError: the file is missing or not a JSON object.
    """
    try:
        return dict(read_object(directory / "config.json"))
    except ModelError as e:
        raise make_mismatch(e.what, e.where) from e


def _is_without_template(llm: Path, model: Path) -> bool:
    """Tell whether the tokenizer's settings differ by a chat template alone, which the exporter moves."""
    try:
        stored, exported = read_object(model / SETTINGS_FILE), read_object(llm / SETTINGS_FILE)
    except ModelError:
        return False
    return stored.pop("chat_template", None) is not None and stored == exported


def _read_embedding_table(llm: Path, fp8: bool, hidden: int) -> TensorInfo:
    path = llm / "embedding.safetensors"
    try:
        tensors: Mapping[str, TensorInfo] = read_header(path).tensors
    except ModelError as e:
        raise make_mismatch(e.what, e.where) from e
    known = ["embedding", "embedding_scale"] if fp8 else ["embedding"]
    if sorted(tensors) != known:
        raise make_mismatch(f"tensors {sorted(tensors)}, expected {' and '.join(known)}", path)
    table_ = tensors["embedding"]
    if (table_.dtype == "F8_E4M3") != fp8:
        raise make_mismatch(f"the table is {table_.dtype}", path)
    if fp8:
        scales = tensors.get("embedding_scale")
        if (
            scales is None
            or scales.dtype != "F32"
            or scales.shape[0] != table_.shape[0]
            or hidden % scales.shape[-1]
        ):
            raise make_mismatch("the FP8 table does not have a scale for each row", path)
        if not np.isfinite(map_tensor(scales)).all():
            raise make_mismatch("a scale of the FP8 table is not finite", path)
    return table_


def check_exported_model(llm: Path, source: ExportSource, *, fp8_embedding: bool = False) -> dict[str, Any]:
    """Run every check on ``<export>/llm``.

    Returns:
        Results for the manifest, the same in each run.

    Raises:
        ExportError: the first check that fails.
    """
    names = list_exported_files(llm)
    onnx_graph = graph.read_graph(llm / "model.onnx")
    embedding = _read_embedding_table(llm, fp8_embedding, source.model.hidden_size)
    refuse_differences(find_attention_differences(onnx_graph, source), onnx_graph.path)
    graph_contract.check_contract(onnx_graph, source)
    quantized = check_quantization(onnx_graph, source)
    weights = coverage.check_coverage(
        onnx_graph, source.weights.tensors.values(), embedding, source.model.tie_word_embeddings
    )
    scale_results = scales.check_scales(onnx_graph, source.weights.tensors)
    check_texts(llm, source)
    compare_runtime_config(read_runtime_config(llm), source, str(llm / "config.json"))
    return {
        "files": names,
        "notes": source.notes,
        "attentionPlugins": source.model.num_layers,
        "quantizationNodes": quantized,
        "weights": weights,
        "scales": scale_results,
        "opsets": dict(sorted(onnx_graph.opsets.items())),
    }
