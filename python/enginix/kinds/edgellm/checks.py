"""Compare an export with the model it was made from: files, attention, quantization, weights, texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from enginix.errors import ModelError
from enginix.kinds.edgellm import coverage, graph, graph_contract, scales
from enginix.kinds.edgellm.errors import ExportError
from enginix.kinds.edgellm.graph import Graph, Node
from enginix.kinds.edgellm.runtime_config import compare_runtime_config, is_window_right
from enginix.kinds.edgellm.source import ExportSource
from enginix.kinds.edgellm.tokenizer_texts import SETTINGS_FILE, TEMPLATE_FILE
from enginix.kinds.edgellm.values import FLOAT_DTYPES
from enginix.model import TensorInfo, read_header
from enginix.model.jsonfile import read_object
from enginix.model.number_formats import read_algorithms
from enginix.tables import load_table

# The exporter's RUNTIME_TOKENIZER_FILENAMES (checkpoint_utils.py): copied where the model has them.
COPIED_TEXTS = ("tokenizer.json", SETTINGS_FILE, "tokenizer.model", "special_tokens_map.json")
_PASSING_OPS = ("Cast", "Reshape", "Transpose", "DequantizeLinear")
_AGAIN = "export again; if it stays so, TensorRT Edge-LLM does not support this model"


def list_exported_files(llm: Path) -> list[str]:
    """List the names of the export's files, after checking that they are the expected ones and not empty."""
    for name in load_table("edgellm")["exportedFiles"]:
        path = llm / name
        if not path.is_file() or path.stat().st_size == 0:
            raise ExportError(f"{name} is missing or empty", where=str(llm), fix=_AGAIN)
    names = sorted(p.name for p in llm.iterdir())
    strange = sorted(set(names) - set(load_table("edgellm")["exportedFiles"]) - set(COPIED_TEXTS))
    if strange:
        raise ExportError(
            f"{strange[0]} is no file that an export of this model has", where=str(llm), fix=_AGAIN
        )
    return names


def check_attention(onnx_graph: Graph, source: ExportSource) -> int:
    """Check that each layer has one attention plugin, with its own KV cache and the model's parameters."""
    where = str(onnx_graph.path)
    nodes = [n for n in onnx_graph.nodes if n.op == "AttentionPlugin" and n.domain == graph.PLUGIN_DOMAIN]
    if len(nodes) != source.layers:
        raise ExportError(
            f"{len(nodes)} attention plugins for {source.layers} layers", where=where, fix=_AGAIN
        )
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
                raise ExportError(
                    f"{node.name}: {key} is {stated}, the model's is {np.float32(number)}",
                    where=where,
                    fix=_AGAIN,
                )
        for key, value in expected.items():
            if node.attributes.get(key) != value:
                raise ExportError(
                    f"{node.name}: {key} is {node.attributes.get(key)}, the model's is {value}",
                    where=where,
                    fix=_AGAIN,
                )
        if not is_window_right(node.attributes.get("sliding_window_size"), model):
            raise ExportError(
                f"{node.name}: sliding_window_size is {node.attributes.get('sliding_window_size')}, "
                f"the model's is {model.sliding_window}",
                where=where,
                fix=_AGAIN,
            )
    for layer in range(source.layers):
        past, present = f"past_key_values_{layer}", f"present_key_values_{layer}"
        readers = [n for n in nodes if past in n.inputs]
        if len(readers) != 1 or past not in onnx_graph.inputs:
            raise ExportError(f"layer {layer} has no KV cache of its own ({past})", where=where, fix=_AGAIN)
        if present not in onnx_graph.outputs or present not in readers[0].outputs:
            raise ExportError(
                f"layer {layer} does not return its KV cache ({present})", where=where, fix=_AGAIN
            )
    return len(nodes)


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
    where = str(onnx_graph.path)
    if source.quantization is None:
        stray = onnx_graph.count("DequantizeLinear") + onnx_graph.count("QuantizeLinear")
        if stray:
            raise ExportError(
                f"{stray} quantization nodes in a model that is not quantized", where=where, fix=_AGAIN
            )
        return {}
    row = read_algorithms()[source.quantization]["edgellm"]
    readers, activations = tuple(row["readers"]), tuple(row["activations"])
    weights = [
        c
        for c in onnx_graph.constants.values()
        if c.dtype == row["weights"] and _is_weight(onnx_graph, c.name, readers)
    ]
    stored = [
        t
        for t in source.weights.tensors.values()
        if t.name.endswith(".weight") and t.dtype not in FLOAT_DTYPES
    ]
    # Joined projections keep the number of bytes; a plugin's padded layout keeps the number of weights.
    joinable = "DequantizeLinear" in readers
    graph_count = sum(c.data.size for c in weights) if joinable else len(weights)
    needed = sum(t.nbytes for t in stored) if joinable else len(stored)
    if not stored or graph_count != needed:
        raise ExportError(
            f"{graph_count} {'bytes of ' * joinable}{source.quantization} weights in the graph,"
            f" {needed} in the checkpoint",
            where=where,
            fix=_AGAIN,
        )
    for weight in weights:
        for reader in onnx_graph.consumers.get(weight.name, ()):
            if reader.op not in readers:
                raise ExportError(f"{weight.name} is read by {reader.op}", where=where, fix=_AGAIN)
            for product, input_name in _find_products(onnx_graph, reader) if activations else ():
                others = [i for i in product.inputs if i != input_name]
                if not any(_reaches_op(onnx_graph, other, activations) for other in others):
                    raise ExportError(
                        f"{weight.name} meets activations that are not quantized ({product.name})",
                        where=where,
                        fix=_AGAIN,
                    )
            if activations and not _find_products(onnx_graph, reader):
                raise ExportError(f"{weight.name} flows into no matrix product", where=where, fix=_AGAIN)
    counts = {op: onnx_graph.count(op) for op in (*readers, *activations)}
    return {op: n for op, n in counts.items() if n}


def _is_weight(onnx_graph: Graph, name: str, readers: tuple[str, ...]) -> bool:
    """Tell whether a constant is a weight, not a scale, which dequantizations read as second input."""
    if len(onnx_graph.constants[name].shape) < 2:
        return False
    return not any(
        name in n.inputs[1:] for n in onnx_graph.consumers.get(name, ()) if n.op == "DequantizeLinear"
    )


def check_texts(llm: Path, source: ExportSource) -> None:
    """Check that the texts are the model's byte for byte."""
    if (llm / TEMPLATE_FILE).read_bytes() != source.template.encode():
        raise ExportError(f"{TEMPLATE_FILE} is not the model's", where=str(llm), fix=_AGAIN)
    for name in COPIED_TEXTS:
        exported, stored = (
            path.read_bytes() if path.is_file() else None for path in (llm / name, source.directory / name)
        )
        if exported != stored and not (name == SETTINGS_FILE and _is_without_template(llm, source.directory)):
            raise ExportError(f"{name} is not the model's", where=str(llm), fix=_AGAIN)


def read_runtime_config(directory: Path) -> dict[str, Any]:
    """Read the ``config.json`` of an export or an engine.

    Raises:
        ExportError: the file is missing or not a JSON object.
    """
    try:
        return dict(read_object(directory / "config.json"))
    except ModelError as e:
        raise ExportError(e.what, where=e.where, fix=_AGAIN) from e


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
        raise ExportError(e.what, where=e.where, fix=_AGAIN) from e
    known = ["embedding", "embedding_scale"] if fp8 else ["embedding"]
    if sorted(tensors) != known:
        raise ExportError(
            f"tensors {sorted(tensors)}, expected {' and '.join(known)}", where=str(path), fix=_AGAIN
        )
    table_ = tensors["embedding"]
    if (table_.dtype == "F8_E4M3") != fp8:
        raise ExportError(f"the table is {table_.dtype}", where=str(path), fix=_AGAIN)
    if fp8:
        scales = tensors.get("embedding_scale")
        if (
            scales is None
            or scales.dtype != "F32"
            or scales.shape[0] != table_.shape[0]
            or hidden % scales.shape[-1]
        ):
            raise ExportError("the FP8 table does not have a scale for each row", where=str(path), fix=_AGAIN)
        values = np.memmap(path, "<f4", "r", scales.begin, scales.shape)
        if not np.isfinite(values).all():
            raise ExportError("a scale of the FP8 table is not finite", where=str(path), fix=_AGAIN)
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
    attentions = check_attention(onnx_graph, source)
    graph_contract.check_interface(onnx_graph, source)
    graph_contract.check_readers(onnx_graph)
    graph_contract.check_operators(onnx_graph, source)
    graph_contract.check_norms(onnx_graph, source)
    graph_contract.check_numbers(onnx_graph)
    quantized = check_quantization(onnx_graph, source)
    weights = coverage.check_coverage(onnx_graph, source.weights.tensors.values(), embedding, source.tied)
    scale_results = scales.check_scales(onnx_graph, source.weights.tensors)
    check_texts(llm, source)
    compare_runtime_config(read_runtime_config(llm), source.facts, str(llm / "config.json"))
    return {
        "files": names,
        "notes": source.notes,
        "attentionPlugins": attentions,
        "quantizationNodes": quantized,
        "weights": weights,
        "scales": scale_results,
        "opsets": dict(sorted(onnx_graph.opsets.items())),
    }
