"""Execute a network of TensorRT for RTX layer by layer, with PyTorch on the CPU.

It reads the layers back from NVIDIA's own object, the one that the builder gets. What each layer means is
NVIDIA's documentation and, in the tests, onnxruntime's execution of the same operators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from enginix.errors import GateError
from enginix.kinds.rtx.network.writer import FP4_BLOCK, NetworkWriter

Array = npt.NDArray[Any]
# A layer and its inputs → its output, or all of several.
Step = Callable[[Any, list[torch.Tensor]], torch.Tensor | tuple[torch.Tensor, ...]]
FP8_MOST, INT8_MOST, FP4_MOST = 448.0, 127.0, 6.0
FP8_LEAST = 2.0**-9
FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
Operation = Callable[..., torch.Tensor]
_ELEMENTWISE: dict[str, Operation] = {
    "SUM": torch.add, "PROD": torch.mul, "GREATER": torch.gt, "AND": torch.logical_and,
}  # fmt: skip
_UNARY: dict[str, Operation] = {"SQRT": torch.sqrt, "RECIP": torch.reciprocal, "NOT": torch.logical_not}


def as_tensor(array: Array) -> torch.Tensor:
    """Return a tensor over an array's memory, of any of the dtypes that networks have."""
    if not array.flags.writeable:
        # Mapped weights are read only, and nothing here writes into a constant.
        array = np.lib.stride_tricks.as_strided(array, array.shape, array.strides, writeable=False)
    # PyTorch reads these types of ml_dtypes as others of their width.
    views = {"bfloat16": (np.int16, torch.bfloat16), "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn)}
    stored, dtype = views.get(array.dtype.name, (array.dtype, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of arrays that are read only
        tensor = torch.from_numpy(array.view(stored))
    return tensor if dtype is None else tensor.view(dtype)


def unpack_int4_columns(packed: torch.Tensor) -> torch.Tensor:
    """Unpack bytes [..., columns / 2] to signed int8 [..., columns]: the low half is the even column."""
    low, high = packed & 15, packed >> 4
    nibbles = torch.stack([low, high], -1).flatten(-2).to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def unpack_fp4_columns(packed: torch.Tensor) -> torch.Tensor:
    """Unpack bytes [..., columns / 2] to float32 numbers [..., columns]: the low half is the even column."""
    halves = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    return torch.from_numpy(halves.numpy().view(FLOAT4).astype(np.float32))


def round_to_fp4(x: torch.Tensor) -> torch.Tensor:
    """Return the nearest numbers of FP4, of two equally near ones the even code's; beyond 6 it is 6."""
    return torch.from_numpy(x.clamp(-FP4_MOST, FP4_MOST).numpy().astype(FLOAT4).astype(np.float32))


@dataclass(frozen=True)
class _LayerPlan:
    """A layer as every step reads it: asking the library each time takes longer than small products.

    Attributes:
        inputs: names; None where an optional input is absent.
        results: of each output its name, type and shape.
    """

    layer: Any
    step: Step
    inputs: list[str | None]
    results: list[tuple[str, torch.dtype, tuple[int, ...]]]


class NetworkInterpreter:
    """A network with the arrays of its constants.

    Attributes:
        is_wide: compute every floating-point tensor in float32, so that nothing is rounded but codes.
        rounds_codes: round activations to codes; without it they are divided by their scale alone.
    """

    def __init__(self, writer: NetworkWriter, *, is_wide: bool = False, rounds_codes: bool = True) -> None:
        """Read the layers of a network.

        Raises:
            GateError: a layer has a type that is not known here.
        """
        self.trt, self.network = writer.trt, writer.network
        self.is_wide, self.rounds_codes = is_wide, rounds_codes
        trt, network, constants = self.trt, self.network, writer.constants
        self._exact = writer.exact if is_wide else {}
        same = ("float32", "float16", "bfloat16", "int32", "bool", "int8")
        self._types = {getattr(trt, name): getattr(torch, name) for name in same}
        # PyTorch has no FP4: the numbers, not the codes.
        self._types |= {trt.fp8: torch.float8_e4m3fn, trt.fp4: torch.float32}
        self._steps = self._list_steps()
        self._layers: list[_LayerPlan] = []
        self._constants: dict[str, torch.Tensor] = {}
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            kind = _name_member(layer.type)
            if kind not in self._steps:
                raise GateError(f"layer {layer.name} is of type {kind}", fix="this network is not enginix's")
            interface, step = self._steps[kind]
            layer.__class__ = interface  # the binding returns the base class
            if kind == "CONSTANT":
                self._constants[layer.get_output(0).name] = self._read_constant(layer, constants)
            else:
                self._layers.append(self._plan_layer(layer, step))
        self._last_use = self._find_last_uses()

    def _read_constant(self, layer: Any, constants: Mapping[str, Array]) -> torch.Tensor:
        """Return a constant: NVIDIA's copy where it gives one back, else the array that it was made of."""
        output, weights = layer.get_output(0), layer.weights
        if output.name in self._exact:
            tensor = as_tensor(self._exact[output.name])
        elif hasattr(weights, "ravel"):
            tensor = as_tensor(weights)
        else:
            unpack = {self.trt.int4: unpack_int4_columns, self.trt.fp4: unpack_fp4_columns}
            tensor = as_tensor(constants[output.name])
            tensor = unpack[output.dtype](tensor) if output.dtype in unpack else tensor
        return tensor.reshape(tuple(layer.shape))

    def _plan_layer(self, layer: Any, step: Step) -> _LayerPlan:
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        names = [None if tensor is None else tensor.name for tensor in inputs]
        results = [(o.name, self._expected_type(o.dtype), tuple(o.shape)) for o in outputs]
        return _LayerPlan(layer, step, names, results)

    def _find_last_uses(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for index, plan in enumerate(self._layers):
            last |= {name: index for name in plan.inputs if name is not None}
        for i in range(self.network.num_outputs):
            last.pop(self.network.get_output(i).name, None)
        return last

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the outputs of one step.

        Args:
            inputs: of the network, by name. Fewer rows than the network has slots are computed as well.

        Raises:
            GateError: a layer's result has another type or shape than the network says.
        """
        values: dict[str, torch.Tensor] = {name: self._widen(tensor) for name, tensor in inputs.items()}
        for index, plan in enumerate(self._layers):
            arguments = list[Any]()
            for name in plan.inputs:
                value = None if name is None else values.get(name)
                arguments.append(value if value is not None or name is None else self._constants[name])
            result = plan.step(plan.layer, arguments)
            given = result if isinstance(result, tuple) else (result,)
            for value, (name, dtype, shape) in zip(given, plan.results, strict=True):
                # Rows may be fewer than slots.
                if value.dtype != dtype or tuple(value.shape)[1:] != shape[1:]:
                    raise GateError(
                        f"layer {plan.layer.name} gives {value.dtype} {list(value.shape)}, and the network "
                        f"says {dtype} {list(shape)}"
                    )
                values[name] = value
            for name in plan.inputs:
                if name is not None and self._last_use.get(name) == index:
                    values.pop(name, None)
        outputs = (self.network.get_output(i).name for i in range(self.network.num_outputs))
        return {name: values[name] for name in outputs}

    def _widen(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.is_wide and tensor.dtype in (torch.float16, torch.bfloat16):
            return tensor.float()
        return tensor

    def _result_type(self, data_type: Any) -> torch.dtype:
        """Return what a tensor of the network is computed in."""
        dtype = self._types[data_type]
        is_narrow = dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if self.is_wide and is_narrow else dtype

    def _expected_type(self, data_type: Any) -> torch.dtype:
        """Return the type of a layer's result."""
        dtype = self._result_type(data_type)
        return dtype if self.rounds_codes or dtype not in (torch.int8, torch.float8_e4m3fn) else torch.float32

    def _list_steps(self) -> dict[str, tuple[Any, Step]]:
        trt = self.trt
        return {
            "CONSTANT": (trt.IConstantLayer, lambda layer, inputs: inputs[0]),
            "ELEMENTWISE": (trt.IElementWiseLayer, self._elementwise),
            "UNARY": (trt.IUnaryLayer, lambda layer, inputs: _UNARY[_name_member(layer.op)](inputs[0])),
            "ACTIVATION": (trt.IActivationLayer, self._activation),
            "CAST": (trt.ICastLayer, lambda layer, inputs: inputs[0].to(self._result_type(layer.to_type))),
            "GATHER": (trt.IGatherLayer, self._gather),
            "REDUCE": (trt.IReduceLayer, self._reduce),
            "SHUFFLE": (trt.IShuffleLayer, self._shuffle),
            "MATRIX_MULTIPLY": (trt.IMatrixMultiplyLayer, self._matrix_multiply),
            "ROTARY_EMBEDDING": (trt.IRotaryEmbeddingLayer, self._rotary_embedding),
            "KV_CACHE_UPDATE": (trt.IKVCacheUpdateLayer, self._cache_update),
            "ATTENTION_INPUT": (trt.IAttentionInputLayer, self._attention),
            "ATTENTION_OUTPUT": (trt.IAttentionOutputLayer, lambda layer, inputs: inputs[0]),
            "QUANTIZE": (trt.IQuantizeLayer, self._quantize),
            "DEQUANTIZE": (trt.IDequantizeLayer, self._dequantize),
            "DYNAMIC_QUANTIZE": (trt.IDynamicQuantizeLayer, self._dynamic_quantize),
        }

    def _elementwise(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        a, b = (self._widen(x) for x in inputs)
        return _ELEMENTWISE[_name_member(layer.op)](a, b)

    def _activation(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        # IActivationLayer.type hides the layer's own type.
        if layer.type != self.trt.ActivationType.SIGMOID:
            raise GateError(f"layer {layer.name} is the activation {layer.type}, not SIGMOID")
        return torch.sigmoid(inputs[0])

    def _gather(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        data, indices = inputs[0], inputs[1].long()
        if layer.axis == 0 and layer.num_elementwise_dims == 0:
            return self._widen(data[indices])
        if layer.axis == 1 and layer.num_elementwise_dims == 1:
            return torch.take_along_dim(data, indices[..., None], 1)
        raise GateError(f"layer {layer.name} gathers along axis {layer.axis}")

    def _reduce(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        if layer.op != self.trt.ReduceOperation.AVG:
            raise GateError(f"layer {layer.name} reduces by {layer.op}, not AVG")
        axes = [i for i in range(inputs[0].dim()) if layer.axes >> i & 1]
        return inputs[0].mean(axes, keepdim=layer.keep_dims)

    def _shuffle(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        x = _permute(inputs[0], layer.first_transpose)
        shape, rows = list(layer.reshape_dims), x.shape[0]
        if len(shape) >= 0:
            sizes = [
                x.shape[i] if size == 0 and layer.zero_is_placeholder else size
                for i, size in enumerate(shape)
            ]
            # A written number of rows is that of all slots.
            x = x.reshape([rows, *sizes[1:]])
        return _permute(x, layer.second_transpose)

    def _matrix_multiply(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Multiply with float32 sums, as GPUs do; products of 16 bits are slow on a CPU besides."""
        transpose = self.trt.MatrixOperation.TRANSPOSE
        a, b = (
            x.float().transpose(-1, -2) if operation == transpose else x.float()
            for x, operation in ((inputs[0], layer.op0), (inputs[1], layer.op1))
        )
        return (a @ b).to(self._result_type(layer.get_output(0).dtype))

    def _rotary_embedding(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        x, cosines, sines, positions = inputs[:4]
        if layer.interleaved:
            raise GateError(f"layer {layer.name} does not rotate heads by halves")
        count = layer.rotary_embedding_dim or x.shape[-1]
        x, passed = torch.split(x, [count, x.shape[-1] - count], -1)
        cos, sin = (table[positions.long()][:, None] for table in (cosines, sines))
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos, passed), -1)

    def _cache_update(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Write in place, as the library does: input and output of a cache have one address."""
        cache, update, first = inputs
        for row in range(len(cache)):
            begin, count = int(first[row]), update.shape[2]
            if begin < 0 or begin + count > cache.shape[2]:
                raise GateError(
                    f"layer {layer.name} writes positions {begin} to {begin + count} of a cache of "
                    f"{cache.shape[2]}"
                )
            cache[row, :, begin : begin + count] = update[row]
        return cache

    def _attention(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        query, key, value, mask = inputs[:4]
        lengths = inputs[6] if len(inputs) > 6 else None
        trt, attention = self.trt, layer.attention
        if attention.causal_kind != trt.CausalMaskKind.NONE or mask is None or mask.dtype != torch.bool:
            raise GateError(f"layer {layer.name} has no mask of booleans, or is causal beside it")
        if attention.decomposable:
            raise GateError(f"layer {layer.name} may be decomposed")
        if lengths is not None:  # no row attends beyond its length
            longest = int(lengths.max())
            key, value, mask = key[:, :, :longest], value[:, :, :longest], mask[..., :longest]
            columns = torch.arange(mask.shape[-1])
            mask = mask & (columns < lengths.view(-1, 1, 1, 1))
        # Consecutive heads of queries share a head of keys.
        rows, heads, count, size = query.shape
        shared = query.float().reshape(rows, key.shape[1], -1, size)
        scores = (shared @ key.float().transpose(-1, -2)).view(rows, heads, count, -1)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        attended = weights.view(rows, key.shape[1], shared.shape[2], -1) @ value.float()
        return attended.view(rows, heads, count, size).to(query.dtype)

    def _quantize(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        x = inputs[0].float() / inputs[1].float()
        data_type = layer.get_output(0).dtype
        if not self.rounds_codes:
            return x
        if data_type == self.trt.fp8:
            return x.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn)
        return x.round().clamp(-INT8_MOST - 1, INT8_MOST).to(torch.int8)

    def _dynamic_quantize(self, layer: Any, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return FP4 codes, and the FP8 scale of each block in units of the second input.

        NVIDIA's documentation of the layer leaves blocks of zeros open: their scale is the least FP8 number.
        """
        x, unit = inputs[0].float(), inputs[1].float()
        last = layer.axis == x.dim() - 1
        if not last or layer.block_size != FP4_BLOCK or layer.to_type != self.trt.fp4:
            raise GateError(f"layer {layer.name} does not round blocks of {FP4_BLOCK} columns to FP4")
        blocks = torch.unflatten(x, -1, (-1, FP4_BLOCK))
        if not self.rounds_codes:
            return x / unit, torch.ones_like(blocks[..., 0])
        scales = (blocks.abs().amax(-1) / FP4_MOST / unit).clamp(FP8_LEAST, FP8_MOST).to(torch.float8_e4m3fn)
        codes = round_to_fp4(blocks / (scales.float() * unit)[..., None]).flatten(-2)
        return codes, scales

    def _dequantize(self, layer: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
        codes, scale = inputs[0].float(), inputs[1].float()
        if scale.dim() == codes.dim():  # a scale for each block of the last axis
            scale = scale.repeat_interleave(codes.shape[-1] // scale.shape[-1], -1)
        elif scale.numel() > 1:
            shape = [1] * codes.dim()
            shape[layer.axis] = scale.numel()
            scale = scale.view(shape)
        return (codes * scale).to(self._result_type(layer.to_type))


def _name_member(member: Any) -> str:
    """Return the name of a member of one of the library's enumerations."""
    return str(member).rsplit(".", 1)[-1]


def _permute(x: torch.Tensor, permutation: Any) -> torch.Tensor:
    order = list(permutation)[: x.dim()]
    return x.permute(order) if sorted(order) == list(range(x.dim())) else x
