"""Record the network that NVIDIA's direct builder defines, and write it as an ONNX graph.

The builder's Python code calls TensorRT's network definition: ``builder_module.py`` is what it imports.
:class:`Network` has the part of that interface that the supported models use; "serializing" it gives ONNX
bytes. It is no TensorRT: it compiles nothing, and a call that it does not know is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

from enginix.errors import GateError
from enginix.kinds.edgellm.execution.recorded_layers import DataType, Dims, Emit, ITensor, Layer, Weights
from enginix.kinds.edgellm.graph import PLUGIN_DOMAIN

# Bytes of a constant that stays in the graph; others go to a file, as ONNX's limit is 2 GiB.
LARGEST_INLINE = 1024
OPSETS = {"": 24, "trt": 1, PLUGIN_DOMAIN: 1}
FP4_BLOCK = 16

_ELEMENTWISE = {"SUM": "Add", "SUB": "Sub", "PROD": "Mul", "DIV": "Div", "MAX": "Max", "MIN": "Min"}
_UNARY = {
    "SQRT": "Sqrt", "NEG": "Neg", "SIN": "Sin", "COS": "Cos", "LOG": "Log", "ERF": "Erf",
    "SIGMOID": "Sigmoid", "RELU": "Relu", "TANH": "Tanh",
}  # fmt: skip
_REDUCTIONS = {"AVG": "ReduceMean", "SUM": "ReduceSum", "MAX": "ReduceMax"}


def _broadcast(a: ITensor, b: ITensor) -> tuple[int, ...]:
    if len(a.shape) != len(b.shape):
        raise GateError(f"the builder joins ranks {len(a.shape)} and {len(b.shape)} element by element")
    return tuple(
        y if x == 1 else x if y == 1 or x == y else -1 for x, y in zip(a.shape, b.shape, strict=True)
    )


class Network:
    """The part of ``INetworkDefinition`` that the direct builder's dense decoders use."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.layers: list[Layer] = []
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[ITensor] = []
        self.outputs: list[ITensor] = []
        self._made = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("add_"):
            raise GateError(f"the builder calls {name}, which is not recorded")
        raise AttributeError(name)

    def make_name(self) -> str:
        self._made += 1
        return f"value_{self._made}"

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    def mark_output(self, tensor: ITensor) -> None:
        self.outputs.append(tensor)

    def write_node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> None:
        name = f"node_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, outputs, name, domain=domain, **attributes))

    def write_constant(self, array: Any) -> str:
        name = self.make_name()
        self.constants[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def _add(self, emit: Emit, inputs: Sequence[ITensor], dtype: DataType, dims: Dims) -> Layer:
        layer = Layer(self, emit, inputs)
        layer.add_output(dtype, dims)
        return layer

    def _add_node(
        self,
        op: str,
        inputs: Sequence[ITensor],
        dtype: DataType,
        dims: Dims,
        domain: str = "",
        *,
        known: Sequence[str] = (),
        **attributes: Any,
    ) -> Layer:
        """Add a layer that becomes one node, whatever the settings ``known`` are."""

        def emit(layer: Layer) -> None:
            layer.require_settings(*known)
            outputs = [t.name for t in layer.outputs]
            self.write_node(op, [t.name for t in layer.inputs], outputs, domain, **attributes)

        return self._add(emit, inputs, dtype, dims)

    def add_input(self, name: str, dtype: DataType, shape: tuple[int, ...]) -> ITensor:
        tensor = ITensor(name, dtype, lambda: tuple(shape))
        self.inputs.append(tensor)
        return tensor

    def add_constant(self, shape: tuple[int, ...], weights: Weights) -> Layer:
        layer = self._add(lambda _: None, [], weights.dtype, lambda: tuple(shape))
        name = layer.outputs[0].name
        tensor = onnx.TensorProto(name=name, data_type=weights.dtype.value, dims=shape)
        if len(weights.data) <= LARGEST_INLINE:
            tensor.raw_data = weights.data
        else:
            self._write_external(tensor, weights.data)
        self.constants[name] = tensor
        if weights.dtype is DataType.INT32:
            sizes = tuple(np.frombuffer(weights.data, "<i4").tolist())
            layer.outputs[0].known = lambda: sizes
        return layer

    def _write_external(self, tensor: Any, data: bytes) -> None:
        with self.data.open("ab") as f:
            tensor.raw_data = b""  # the helper wants one
            set_external_data(tensor, self.data.name, f.tell(), len(data))
            f.write(data)
        tensor.ClearField("raw_data")

    def add_cast(self, x: ITensor, dtype: DataType) -> Layer:
        layer = self._add_node("Cast", [x], dtype, lambda: x.shape, to=dtype.value)
        layer.outputs[0].known = lambda: x.elements
        return layer

    def add_unary(self, x: ITensor, operation: str) -> Layer:
        return self._add_node(_find_operator(_UNARY, operation), [x], x.dtype, lambda: x.shape)

    add_activation = add_unary

    def add_elementwise(self, a: ITensor, b: ITensor, operation: str) -> Layer:
        op = _find_operator(_ELEMENTWISE, operation)
        if a.dtype is not b.dtype:
            raise GateError(
                f"the builder joins {a.dtype.name} and {b.dtype.name} in a strongly typed network"
            )
        return self._add_node(op, [a, b], a.dtype, lambda: _broadcast(a, b))

    def add_matrix_multiply(self, a: ITensor, a_form: str, b: ITensor, b_form: str) -> Layer:
        def dims() -> tuple[int, ...]:
            rows = a.shape[-1] if a_form == "TRANSPOSE" else a.shape[-2]
            columns = b.shape[-2] if b_form == "TRANSPOSE" else b.shape[-1]
            return (*a.shape[:-2], rows, columns)

        def emit(layer: Layer) -> None:
            layer.require_settings()
            names = []
            for tensor, form in zip(layer.inputs, (a_form, b_form), strict=True):
                name = tensor.name
                if form == "TRANSPOSE":
                    rank = len(tensor.shape)
                    name = self.make_name()
                    order = [*range(rank - 2), rank - 1, rank - 2]
                    self.write_node("Transpose", [tensor.name], [name], perm=order)
                elif form != "NONE":
                    raise GateError(f"the builder multiplies with {form}, which is not recorded")
                names.append(name)
            self.write_node("MatMul", names, [layer.outputs[0].name])

        return self._add(emit, [a, b], a.dtype, dims)

    def add_reduce(self, x: ITensor, operation: str, axes: int, keep: bool) -> Layer:
        chosen = [n for n in range(len(x.shape)) if axes >> n & 1]
        op = _find_operator(_REDUCTIONS, operation)

        def emit(layer: Layer) -> None:
            layer.require_settings()
            names = [layer.inputs[0].name, self.write_constant(np.array(chosen, np.int64))]
            self.write_node(op, names, [layer.outputs[0].name], keepdims=int(keep))

        def dims() -> tuple[int, ...]:
            kept = ((n, 1 if n in chosen else d) for n, d in enumerate(x.shape))
            return tuple(d for n, d in kept if keep or n not in chosen)

        return self._add(emit, [x], x.dtype, dims)

    def add_shuffle(self, x: ITensor) -> Layer:
        """Reshape to ``reshape_dims`` (0 copies a dimension) or the second input; or transpose."""

        def emit(layer: Layer) -> None:
            layer.require_settings("reshape_dims", "second_transpose")
            source, out = layer.inputs[0].name, layer.outputs[0].name
            order = layer.settings.get("second_transpose")
            target = out if order is None else self.make_name()
            if len(layer.inputs) > 1:
                shape = self.make_name()
                self.write_node("Cast", [layer.inputs[1].name], [shape], to=onnx.TensorProto.INT64)
            elif "reshape_dims" in layer.settings:
                shape = self.write_constant(np.array(layer.reshape_dims, np.int64))
            else:
                shape, target = "", source
            if shape:
                self.write_node("Reshape", [source, shape], [target])
            if order is not None:
                self.write_node("Transpose", [target], [out], perm=list(order))
            elif not shape:
                self.write_node("Identity", [source], [out])

        def dims() -> tuple[int, ...]:
            if len(layer.inputs) > 1:
                shape = layer.inputs[1].elements
            else:
                stated = layer.settings.get("reshape_dims", x.shape)
                shape = tuple(x.shape[n] if d == 0 else d for n, d in enumerate(stated))
            order = layer.settings.get("second_transpose", range(len(shape)))
            return tuple(shape[n] for n in order)

        layer = self._add(emit, [x], x.dtype, dims)
        return layer

    def add_shape(self, x: ITensor) -> Layer:
        layer = self._add_node("Shape", [x], DataType.INT64, lambda: (len(x.shape),))
        layer.outputs[0].known = lambda: x.shape
        return layer

    def add_concatenation(self, tensors: Sequence[ITensor]) -> Layer:
        def emit(layer: Layer) -> None:
            layer.require_settings("axis")
            names = [t.name for t in layer.inputs]
            self.write_node("Concat", names, [layer.outputs[0].name], axis=layer.axis)

        def dims() -> tuple[int, ...]:
            sizes = [t.shape[layer.axis] for t in tensors]
            joined = -1 if -1 in sizes else sum(sizes)
            return tuple(joined if n == layer.axis else d for n, d in enumerate(tensors[0].shape))

        layer = self._add(emit, tensors, tensors[0].dtype, dims)
        layer.outputs[0].known = lambda: tuple(n for t in tensors for n in t.elements)
        return layer

    def add_gather(self, x: ITensor, indices: ITensor, axis: int) -> Layer:
        def dims() -> tuple[int, ...]:
            return (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])

        return self._add_node("Gather", [x, indices], x.dtype, dims, axis=axis)

    def add_slice(
        self, x: ITensor, start: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...]
    ) -> Layer:
        def emit(layer: Layer) -> None:
            layer.require_settings()
            if len(layer.inputs) > 1:
                raise GateError("the builder slices by computed sizes, which is not recorded")
            ends = [a + n * s for a, n, s in zip(start, size, stride, strict=True)]
            parts = [start, ends, range(len(start)), stride]
            names = [self.write_constant(np.array(list(p), np.int64)) for p in parts]
            self.write_node("Slice", [layer.inputs[0].name, *names], [layer.outputs[0].name])

        layer = self._add(emit, [x], x.dtype, lambda: tuple(size))
        layer.outputs[0].known = lambda: x.elements[start[0] :: stride[0]][: size[0]]
        return layer

    def add_quantize(self, x: ITensor, scale: ITensor, dtype: DataType) -> Layer:
        return self._add_node(
            "QuantizeLinear", [x, scale], dtype, lambda: x.shape, known=("axis",), output_dtype=dtype.value
        )

    def add_dequantize(self, x: ITensor, scale: ITensor, dtype: DataType) -> Layer:
        """Multiply codes by one scale, a scale a row (``axis``), or a scale a block of the last axis."""

        def emit(layer: Layer) -> None:
            layer.require_settings("axis")
            out = layer.outputs[0].name
            target = out if scale.dtype is dtype else self.make_name()
            names = [t.name for t in layer.inputs]
            if x.dtype is DataType.FP4:
                axis = layer.settings.get("axis", 0) - len(x.shape)
                self.write_node("DequantizeLinear", names, [target], "trt", axis=axis, block_size=FP4_BLOCK)
            else:
                self.write_node("DequantizeLinear", names, [target], axis=layer.settings.get("axis", 1))
            if target != out:
                self.write_node("Cast", [target], [out], to=dtype.value)

        return self._add(emit, [x, scale], dtype, lambda: x.shape)

    def add_dynamic_quantize(
        self, x: ITensor, axis: int, block: int, dtype: DataType, scale_dtype: DataType
    ) -> Layer:
        if (dtype, scale_dtype, block) != (DataType.FP4, DataType.FP8, FP4_BLOCK):
            raise GateError(f"the builder quantizes to {dtype.name} in blocks of {block}")
        options = {"axis": axis - len(x.shape), "block_size": block, "scale_type": scale_dtype.value}
        layer = self._add_node("TRT_FP4DynamicQuantize", [x], dtype, lambda: x.shape, "trt", **options)
        layer.add_output(scale_dtype, lambda: (*x.shape[:-1], x.shape[-1] // block))
        return layer

    def add_plugin_v3(self, inputs: Sequence[ITensor], shapes: Sequence[ITensor], plugin: Any) -> Layer:
        attributes, x = dict(plugin.attributes), inputs[0]
        if shapes:
            raise GateError(f"{plugin.name} has shape inputs, which are not recorded")

        def dims() -> tuple[int, ...]:
            if plugin.name == "AttentionPlugin":
                return x.shape[0], attributes["num_q_heads"], attributes["head_size"]
            return (*x.shape[:-1], attributes["gemm_n"])

        if plugin.name == "AttentionPlugin":
            # Keys that the plugin may be without, with the values that its schema and NVIDIA's exporter give.
            attributes.setdefault("attention_scale", 1.0 / attributes["head_size"] ** 0.5)
            attributes.setdefault("rms_norm_eps", 1e-6)
        elif not plugin.name.startswith("Int4GroupwiseGemmPlugin"):
            raise GateError(f"the builder uses {plugin.name}, which has no definition")
        layer = self._add_node(plugin.name, inputs, x.dtype, dims, PLUGIN_DOMAIN, **attributes)
        if plugin.name == "AttentionPlugin":
            layer.add_output(inputs[1].dtype, lambda: inputs[1].shape)
        return layer

    def _sort_layers(self) -> list[Layer]:
        """Return the layers after those that they read: the builder may set an input afterwards."""
        producers = {id(tensor): layer for layer in self.layers for tensor in layer.outputs}
        done: dict[int, Layer] = {}
        pending = list(reversed(self.layers))
        while pending:
            layer = pending[-1]
            needed = [producers[id(t)] for t in layer.inputs if id(t) in producers]
            missing = [other for other in needed if id(other) not in done]
            if missing:
                pending += missing
            else:
                done[id(pending.pop())] = layer
        return list(done.values())

    def serialize(self) -> bytes:
        """Return the network as an ONNX model."""
        for layer in self._sort_layers():
            layer.emit(layer)
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "direct",
            [value(t.name, t.dtype.value, [None if d < 0 else d for d in t.shape]) for t in self.inputs],
            [value(t.name, t.dtype.value, None) for t in self.outputs],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString(deterministic=True))


def _find_operator(table: Mapping[str, str], operation: str) -> str:
    if operation not in table:
        raise GateError(f"the builder computes {operation}, which is not recorded")
    return table[operation]
