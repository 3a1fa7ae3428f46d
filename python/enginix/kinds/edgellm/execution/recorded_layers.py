"""Types, constants, values and layers of a recorded network, with the names that TensorRT gives them."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from enginix.errors import GateError

if TYPE_CHECKING:
    from enginix.kinds.edgellm.execution.network_recorder import Network


class DataType(enum.Enum):
    """TensorRT's element types; each value is ONNX's of the same meaning."""

    FLOAT = onnx.TensorProto.FLOAT
    HALF = onnx.TensorProto.FLOAT16
    INT8 = onnx.TensorProto.INT8
    INT32 = onnx.TensorProto.INT32
    INT64 = onnx.TensorProto.INT64
    UINT8 = onnx.TensorProto.UINT8
    BOOL = onnx.TensorProto.BOOL
    BF16 = onnx.TensorProto.BFLOAT16
    FP8 = onnx.TensorProto.FLOAT8E4M3FN
    FP4 = onnx.TensorProto.FLOAT4E2M1


# Computes a shape, or the elements of a vector of sizes; -1 where one is only known at run time.
Dims = Callable[[], tuple[int, ...]]
Emit = Callable[["Layer"], None]
NARROW_BITS = {DataType.FP8: 8, DataType.FP4: 4}


class Weights:
    """Constant data: an array, or a type, an address and a number of elements."""

    def __init__(self, source: Any, address: int = 0, count: int = 0) -> None:
        if isinstance(source, DataType):
            size = (count * NARROW_BITS[source] + 7) // 8
            self.dtype, self.data = source, ctypes.string_at(address, size)
        else:
            self.dtype = DataType(helper.np_dtype_to_tensor_dtype(source.dtype))
            self.data = np.ascontiguousarray(source).tobytes()


class ITensor:
    """A value of the network.

    Attributes:
        dims: computes its shape.
        known: computes its elements, where it is a vector of sizes.
    """

    def __init__(self, name: str, dtype: DataType, dims: Dims) -> None:
        self.name, self.dtype, self.dims = name, dtype, dims
        self.known: Dims = lambda: (-1,) * self.shape[0]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return self.dims()

    @cached_property
    def elements(self) -> tuple[int, ...]:
        return self.known()


class Layer:
    """A layer; its settings are read when the network is written, since the builder sets them afterwards."""

    def __init__(self, network: Network, emit: Emit, inputs: Sequence[ITensor]) -> None:
        self.__dict__.update(network=network, emit=emit, inputs=list(inputs), outputs=[], settings={})
        network.layers.append(self)

    def __setattr__(self, name: str, value: Any) -> None:
        self.settings[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["settings"][name]
        except KeyError:
            raise AttributeError(name) from None

    def set_input(self, index: int, tensor: ITensor) -> None:
        while len(self.inputs) <= index:
            self.inputs.append(None)
        self.inputs[index] = tensor

    def get_output(self, index: int) -> ITensor:
        output: ITensor = self.outputs[index]
        return output

    def add_output(self, dtype: DataType, dims: Dims) -> None:
        self.outputs.append(ITensor(self.network.make_name(), dtype, dims))

    def require_settings(self, *known: str) -> None:
        if unknown := sorted(set(self.settings) - {"name", *known}):
            raise GateError(f"the builder sets {unknown[0]} of a layer, which is not recorded")
