"""Add layers to a network of TensorRT for RTX; the arrays of its constants stay in memory.

A network refers to the memory of its constants, and gives back no readable data of bfloat16, FP8, INT4 and
FP4 ones. So the writer keeps each array, by the name of its tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BFLOAT16, FLOAT8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
FP4_BLOCK = 16  # columns that share a scale in NVFP4


class NetworkWriter:
    """A network under construction.

    Attributes:
        trt: the module ``tensorrt_rtx_bindings``.
        builder, network: NVIDIA's objects.
        constants: name of a constant's tensor → its array; of half bytes, bytes [rows, columns / 2].
        exact: of constants that were rounded for the network, the numbers before that.
    """

    def __init__(self, trt: Any, logger: Any) -> None:
        self.trt = trt
        self.builder = trt.Builder(logger)
        self.network = self.builder.create_network(0)
        self.constants: dict[str, Array] = {}
        self.exact: dict[str, Array] = {}
        self._types = {
            np.dtype(np.float32): trt.float32,
            np.dtype(np.float16): trt.float16,
            BFLOAT16: trt.bfloat16,
            FLOAT8: trt.fp8,
            np.dtype(np.int8): trt.int8,
            np.dtype(np.int32): trt.int32,
        }

    def data_type(self, dtype: np.dtype[Any]) -> Any:
        """Return the library's type of an array's elements."""
        return self._types[dtype]

    def add_input(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> Any:
        return self.network.add_input(name, self.data_type(dtype), tuple(shape))

    def mark_output(self, tensor: Any, name: str) -> None:
        tensor.name = name
        self.network.mark_output(tensor)

    def _named(self, layer: Any, name: str) -> Any:
        """Return a layer's output; both get the name of what it computes."""
        layer.name = name
        layer.get_output(0).name = name
        return layer.get_output(0)

    def constant(self, name: str, array: Array, exact: Array | None = None) -> Any:
        """Add a constant of an array's type and shape; the array is not changed.

        Args:
            exact: the numbers that ``array`` is rounded from.
        """
        array = np.asarray(array, order="C")
        if exact is not None:
            self.exact[name] = exact
        return self._add_constant(name, array, self.data_type(array.dtype), array.shape)

    def constant_of_halves(self, name: str, packed: Array, data_type: Any) -> Any:
        """Add a constant of half bytes [1, rows, columns], the even column of each byte in its low half.

        Args:
            packed: uint8 [1, rows, columns / 2].
            data_type: ``trt.int4`` or ``trt.fp4``.
        """
        shape = (*packed.shape[:-1], packed.shape[-1] * 2)
        return self._add_constant(name, np.ascontiguousarray(packed), data_type, shape)

    def _add_constant(self, name: str, array: Array, data_type: Any, shape: tuple[int, ...]) -> Any:
        assert name not in self.constants, name
        self.constants[name] = array
        weights = self.trt.Weights(data_type, array.ctypes.data, int(np.prod(shape, dtype=np.int64)))
        return self._named(self.network.add_constant(shape, weights), name)

    def scalar(self, name: str, value: float, rank: int) -> Any:
        """Add a float32 constant of ones in shape, for element-wise layers."""
        return self.constant(name, np.full((1,) * rank, value, np.float32))

    def cast(self, x: Any, data_type: Any, name: str) -> Any:
        return self._named(self.network.add_cast(x, data_type), name)

    def combine(self, a: Any, b: Any, operation: str, name: str) -> Any:
        """Add an element-wise layer, by the name of the library's operation: SUM, PROD, GREATER, AND."""
        kind = getattr(self.trt.ElementWiseOperation, operation)
        return self._named(self.network.add_elementwise(a, b, kind), name)

    def unary(self, x: Any, operation: str, name: str) -> Any:
        return self._named(self.network.add_unary(x, getattr(self.trt.UnaryOperation, operation)), name)

    def mean_of_last_axis(self, x: Any, name: str) -> Any:
        axes = 1 << (len(x.shape) - 1)
        return self._named(self.network.add_reduce(x, self.trt.ReduceOperation.AVG, axes, True), name)

    def sigmoid(self, x: Any, name: str) -> Any:
        return self._named(self.network.add_activation(x, self.trt.ActivationType.SIGMOID), name)

    def gather_rows(self, table: Any, indices: Any, name: str) -> Any:
        """Return rows of a matrix: table [N, E], indices [B, S] → [B, S, E]."""
        return self._named(self.network.add_gather(table, indices, 0), name)

    def gather_step(self, x: Any, indices: Any, name: str) -> Any:
        """Return one token of each row: x [B, S, E], indices [B, 1] → [B, 1, E]."""
        layer = self.network.add_gather(x, indices, 1)
        layer.num_elementwise_dims = 1
        return self._named(layer, name)

    def multiply_transposed(self, x: Any, weight: Any, name: str) -> Any:
        """Return x Wᵀ: x [B, S, K], weight [1, N, K] → [B, S, N]."""
        operation = self.trt.MatrixOperation
        layer = self.network.add_matrix_multiply(x, operation.NONE, weight, operation.TRANSPOSE)
        return self._named(layer, name)

    def reshape(self, x: Any, shape: Sequence[int], name: str, **transposes: Sequence[int]) -> Any:
        """Reshape; with ``first_transpose`` before it or ``second_transpose`` after it."""
        layer = self.network.add_shuffle(x)
        layer.reshape_dims = tuple(shape)
        for key, order in transposes.items():
            setattr(layer, key, self.trt.Permutation(order))
        return self._named(layer, name)

    def split_heads(self, x: Any, heads: int, size: int, name: str) -> Any:
        """[B, S, heads × size] → [B, heads, S, size]."""
        return self.reshape(x, (0, 0, heads, size), name, second_transpose=(0, 2, 1, 3))

    def join_heads(self, x: Any, width: int, name: str) -> Any:
        """[B, heads, S, size] → [B, S, width]."""
        return self.reshape(x, (0, 0, width), name, first_transpose=(0, 2, 1, 3))

    def quantize(self, x: Any, scale: Any, data_type: Any, name: str) -> Any:
        """Divide by a scale of one element and round, with saturation."""
        return self._named(self.network.add_quantize(x, scale, data_type), name)

    def quantize_blocks(self, x: Any, scale: Any, name: str) -> tuple[Any, Any]:
        """Round each 16 columns to FP4 by a scale of their own; return codes, and scales in FP8.

        Args:
            scale: float32, one number; the unit of the scales.
        """
        layer = self.network.add_dynamic_quantize(x, len(x.shape) - 1, FP4_BLOCK, self.trt.fp4, self.trt.fp8)
        layer.set_input(1, scale)
        scales = layer.get_output(1)
        scales.name = f"{name}.scales"
        return self._named(layer, name), scales

    def dequantize(self, x: Any, scale: Any, data_type: Any, name: str, axis: int | None = None) -> Any:
        """Multiply codes by their scale: one, one an index of ``axis``, or one a block (same rank)."""
        layer = self.network.add_dequantize(x, scale, data_type)
        if axis is not None:
            layer.axis = axis
        return self._named(layer, name)

    def rotate(self, x: Any, cosines: Any, sines: Any, positions: Any, name: str, rotated: int = 0) -> Any:
        """Rotate x [B, heads, S, size] by its two halves (GPT-NeoX style); positions [B, S].

        Args:
            rotated: first elements of a head that are rotated, by halves of their own; 0 for all.
        """
        layer = self.network.add_rotary_embedding(x, cosines, sines, False, rotated)
        layer.set_input(3, positions)
        return self._named(layer, name)

    def update_cache(self, cache: Any, update: Any, first: Any, name: str) -> Any:
        """Write [B, heads, S, size] into a cache [B, heads, length, size], row by row from ``first`` [B]."""
        layer = self.network.add_kv_cache_update(cache, update, first, self.trt.KVCacheMode.LINEAR)
        return self._named(layer, name)

    def attend(self, query: Any, key: Any, value: Any, mask: Any, lengths: Any, name: str) -> Any:
        """Add one attention that the builder must fuse into one kernel, or refuse.

        Args:
            query: [B, heads, S, size], scaled already.
            key, value: [B, key-value heads, length, size].
            mask: bool [B, 1, S, length], true where a query attends.
            lengths: int32 [B], columns of each row that are valid.
        """
        trt = self.trt
        attention = self.network.add_attention_v2(
            query, key, value, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
        )
        attention.decomposable = False
        attention.mask = mask
        attention.key_value_lengths = lengths
        attention.name = name
        output = attention.get_output(0)
        output.name = name
        return output
