"""An exported ONNX graph as plain data: constants by name, nodes, producers and consumers of values."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from enginix.kinds.edgellm.errors import ExportError

PLUGIN_DOMAIN = "trt_edgellm"
SCOPES_KEY = "pkg.torch.onnx.name_scopes"
TRACE_KEY = "pkg.torch.onnx.stack_trace"
# ONNX element type → NumPy's, for the types that Edge-LLM's exporter writes; None for two elements a byte.
_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32, "FLOAT16": np.float16, "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn, "INT64": np.int64, "INT32": np.int32, "INT8": np.int8,
    "UINT8": np.uint8, "BOOL": np.bool_, "FLOAT4E2M1": None, "INT4": None, "UINT4": None,
}  # fmt: skip
_AGAIN = "export again; if it stays so, the exporter does not support this model"


@dataclass(frozen=True)
class Constant:
    """An initializer.

    Attributes:
        dtype: ONNX name, for instance ``FLOAT16``.
        shape: in elements.
        data: its bytes, little-endian, mapped from the file where it is stored outside of the graph.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def array(self) -> npt.NDArray[Any]:
        """Return the elements; for types of half a byte the bytes, with the last axis in bytes."""
        dtype = _DTYPES[self.dtype]
        if dtype is None:
            return self.data.reshape(*self.shape[:-1], -1) if self.shape else self.data
        elements: npt.NDArray[Any] = self.data.view(dtype)
        return elements.reshape(self.shape)


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        module: the checkpoint's module that it was traced in, for instance ``model.layers.0.mlp.up_proj``;
            empty where the exporter does not say.
    """

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    module: str = ""


@dataclass(frozen=True)
class Graph:
    """The graph of one ``model.onnx``.

    Attributes:
        interface: inputs and outputs → their ONNX element type, and their dimensions: numbers, or names of
            those that vary.
    """

    path: Path
    constants: Mapping[str, Constant]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opsets: Mapping[str, int]
    interface: Mapping[str, tuple[str, tuple[int | str, ...]]] = field(default_factory=dict)

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """Map each value to the node that produces it."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """Map each value to the nodes that read it."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in set(node.inputs):
                readers.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    def count(self, op: str, domain: str | None = None) -> int:
        return sum(n.op == op and domain in (None, n.domain) for n in self.nodes)


def _describe_value(value: Any, onnx: Any) -> tuple[str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dimensions = tuple(d.dim_param or int(d.dim_value) for d in tensor.shape.dim)
    return onnx.TensorProto.DataType.Name(tensor.elem_type), dimensions


def _find_module(entries: Any) -> str:
    """Return the innermost module of the scopes that PyTorch's exporter writes beside a node."""
    text = next((entry.value for entry in entries if entry.key == SCOPES_KEY), "")
    modules: list[str] = re.findall(r"'_model\.([\w.]+)'", text)
    return modules[-1] if modules else ""


def _map_external_data(entries: Any, folder: Path, files: dict[str, Any], where: str, needed: int) -> Any:
    described = {entry.key: entry.value for entry in entries}
    location = described.get("location", "")
    if not location or location != os.path.basename(location) or location in (".", ".."):
        raise ExportError(f"its data lies in {location!r}: not a file beside the graph", where=where)
    try:
        offset, length = int(described.get("offset", "0")), int(described.get("length", str(needed)))
    except ValueError as e:
        raise ExportError("offset or length of its data is not a number", where=where) from e
    if location not in files:
        path = folder / location
        if not path.is_file() or path.stat().st_size == 0:
            raise ExportError(f"its data file {location} is missing or empty", where=where, fix=_AGAIN)
        files[location] = np.memmap(path, dtype=np.uint8, mode="r")
    data = files[location]
    if offset < 0 or length != needed or offset + length > data.size:
        raise ExportError(
            f"needs {needed} bytes; the graph points at {length} from byte {offset} of {data.size}"
            " (truncated?)",
            where=where,
            fix=_AGAIN,
        )
    return data[offset : offset + length]


def _read_constant(tensor: Any, onnx: Any, folder: Path, files: dict[str, Any], where: str) -> Constant:
    dtype = onnx.TensorProto.DataType.Name(tensor.data_type)
    where = f"{where}: {tensor.name}"
    if dtype not in _DTYPES:
        raise ExportError(f"element type {dtype} is not one that the exporter writes", where=where)
    shape = tuple(tensor.dims)
    kind = _DTYPES[dtype]
    needed = (prod(shape) + 1) // 2 if kind is None else prod(shape) * np.dtype(kind).itemsize
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        data = _map_external_data(tensor.external_data, folder, files, where, needed)
    elif tensor.raw_data:
        data = np.frombuffer(tensor.raw_data, dtype=np.uint8)
        if data.size != needed:
            raise ExportError(f"needs {needed} bytes, has {data.size}", where=where, fix=_AGAIN)
    else:
        data = np.frombuffer(np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).tobytes(), np.uint8)
    return Constant(tensor.name, dtype, shape, data)


def _load_model(path: Path) -> Any:
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as e:
        raise ExportError("the exporter wrote no graph", where=path, fix=_AGAIN) from e
    except Exception as e:  # protobuf's own errors share no base class over its versions
        raise ExportError(f"not an ONNX file: {e}", where=path, fix=_AGAIN) from e


def _remove_traces(entries: Any) -> None:
    remaining = [(e.key, e.value) for e in entries if e.key != TRACE_KEY]
    del entries[:]
    for key, value in remaining:
        entry = entries.add()
        entry.key, entry.value = key, value


def strip_stack_traces(path: Path) -> None:
    """Remove the stack traces that PyTorch writes into each node of an exported graph.

    They name the directory that Python is installed in, would tie the export to that Python, and make two
    installations' exports differ.

    Raises:
        ExportError: not an ONNX graph, or the graph still names this Python's directory.
    """
    model = _load_model(path)
    graph = model.graph
    parts = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, model)
    for part in parts:
        _remove_traces(part.metadata_props)
    data = model.SerializeToString(deterministic=True)
    if sys.prefix.encode() in data:
        raise ExportError(f"the graph names {sys.prefix}, where this Python is installed", where=path)
    path.write_bytes(data)


def read_graph(path: Path) -> Graph:
    """Read ``model.onnx`` and map the data beside it.

    Raises:
        ExportError: the file is missing or not ONNX, its data is missing, or it has subgraphs or functions,
            which no check reads.
    """
    import onnx

    where, model = str(path), _load_model(path)
    graph = model.graph
    if not graph.node or not graph.initializer:
        raise ExportError("the graph is empty", where=where, fix=_AGAIN)
    if model.functions or any(a.type in (5, 10) for n in graph.node for a in n.attribute):
        raise ExportError("the graph has functions or subgraphs, which no check reads", where=where)
    files: dict[str, Any] = {}
    constants = {t.name: _read_constant(t, onnx, path.parent, files, where) for t in graph.initializer}
    if len(constants) != len(graph.initializer):
        raise ExportError("two initializers have one name", where=where, fix=_AGAIN)
    nodes = tuple(
        Node(
            op=n.op_type,
            domain=n.domain,
            name=n.name,
            inputs=tuple(n.input),
            outputs=tuple(n.output),
            attributes={a.name: onnx.helper.get_attribute_value(a) for a in n.attribute},
            module=_find_module(n.metadata_props),
        )
        for n in graph.node
    )
    return Graph(
        path=path,
        constants=constants,
        nodes=nodes,
        inputs=tuple(i.name for i in graph.input),
        outputs=tuple(o.name for o in graph.output),
        opsets={o.domain: o.version for o in model.opset_import},
        interface={v.name: _describe_value(v, onnx) for v in (*graph.input, *graph.output)},
    )
