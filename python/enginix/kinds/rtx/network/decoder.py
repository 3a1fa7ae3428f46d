"""A checkpoint's network, by the network API of TensorRT for RTX.

The modules of an architecture are those of the converter (``enginix.checkpoint.layout``), from one row of
``architectures.json``. Norms, rotation, scaling of the query and attention's lengths are computed in float32
and int32; all else in the checkpoint's dtype.

Inputs: ``input_ids`` int32 [slots, step_tokens]; ``write_indices`` int32 [slots], the tokens that a slot has
already; ``last_indices`` int32 [slots, 1], the token of the step whose logits are wanted; ``key_N`` and
``value_N`` [slots, key-value heads, cache_length, head_size]. Outputs: ``logits`` float32
[slots, vocab_size]; ``key_N_next`` and ``value_N_next``, to be bound to the address of their inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix import manifest
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.rank_modules import LinearModule, VectorModule
from enginix.checkpoint.verify import algorithm_of
from enginix.checkpoint.write import rank_file_name
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.network.quantized_products import multiply_by_module
from enginix.kinds.rtx.network.rotation_table import make_rotation_tables
from enginix.kinds.rtx.network.writer import NetworkWriter
from enginix.model.attention_window import WINDOW_KEY
from enginix.model.mapped_tensors import numpy_dtype

Array = npt.NDArray[Any]
_DTYPE_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_layer_windows(checkpoint: Path, config: CheckpointConfig) -> tuple[int | None, ...]:
    """Return the sliding window of each layer in tokens, None where it attends to all, by the manifest."""
    pattern = None
    if (checkpoint / manifest.MANIFEST_FILE).exists():
        pattern = manifest.read_manifest(checkpoint, "checkpoint").model.get(WINDOW_KEY)
    pattern = pattern or [None]
    windows = [pattern[layer % len(pattern)] for layer in range(config.num_hidden_layers)]
    return tuple(None if w is None or w >= config.context else int(w) for w in windows)


class DecoderNetwork:
    """The network of a checkpoint of one rank.

    Attributes:
        writer: holds the network and the arrays of its constants.
        dtype: NumPy's, of activations and cache.
    """

    def __init__(
        self, trt: Any, logger: Any, checkpoint: Path, shape: EngineShape, dtype: str | None = None
    ) -> None:
        """Describe a checkpoint as a network.

        Args:
            dtype: of activations in place of the checkpoint's.

        Raises:
            CheckpointError: the configuration is not whole.
            ModelError: a rank file is missing or not whole.
        """
        self.config = CheckpointConfig.read(checkpoint)
        self.shape = shape
        self.writer = NetworkWriter(trt, logger)
        self.tensors = RankFile(checkpoint / rank_file_name(0))
        self.dtype = numpy_dtype(_DTYPE_CODES[dtype or self.config.dtype])
        self._type = self.writer.data_type(self.dtype)
        modules = list(CheckpointLayout(self.config).rank(0))
        self._linears = {m.name: m for m in modules if isinstance(m, LinearModule)}
        self._vectors = {m.name for m in modules if isinstance(m, VectorModule)}
        self._write(read_layer_windows(checkpoint, self.config))

    def _weight(self, name: str) -> Array:
        """Return an unquantized tensor, mapped, in the network's dtype."""
        array = self.tensors[name]
        return array if array.dtype == self.dtype else array.astype(self.dtype)

    def _write(self, windows: tuple[int | None, ...]) -> None:
        w, c, s = self.writer, self.config, self.shape
        int32 = np.dtype(np.int32)
        ids = w.add_input("input_ids", int32, (s.slots, s.step_tokens))
        first = w.add_input("write_indices", int32, (s.slots,))
        last = w.add_input("last_indices", int32, (s.slots, 1))
        steps = w.constant("step_positions", np.arange(s.step_tokens, dtype=np.int32)[None])
        self._positions = w.combine(
            w.reshape(first, (s.slots, 1), "write_indices.column"), steps, "SUM", "positions"
        )
        step_tokens = w.constant("step_tokens", np.array([s.step_tokens], np.int32))
        self._first, self._lengths = first, w.combine(first, step_tokens, "SUM", "key_value_lengths")
        self._masks = {window: self._write_mask(window) for window in dict.fromkeys(windows)}
        cosines, sines = make_rotation_tables(c, s.cache_length)
        self._tables = w.constant("rotation.cosines", cosines), w.constant("rotation.sines", sines)
        table = w.constant("transformer.vocab_embedding", self._weight("transformer.vocab_embedding.weight"))
        x = w.gather_rows(table, ids, "embedded")
        for layer in range(c.num_hidden_layers):
            x = self._write_layer(x, f"transformer.layers.{layer}", layer, windows[layer])
        x = w.gather_step(x, last, "last_tokens")
        x = self._norm(x, "transformer.ln_f")
        x = self._linear(x, "lm_head")
        x = w.cast(w.reshape(x, (s.slots, c.vocab_size), "logits.rows"), w.trt.float32, "logits")
        w.mark_output(x, "logits")

    def _write_mask(self, window: int | None) -> Any:
        """Return bool [slots, 1, step_tokens, cache_length]: from each token, which it attends to."""
        w, s, prefix = self.writer, self.shape, f"mask.{window or 'all'}"
        shape = (s.slots, 1, s.step_tokens, 1)
        rows = w.reshape(self._positions, shape, f"{prefix}.rows")
        columns = w.constant(f"{prefix}.columns", np.arange(s.cache_length, dtype=np.int32)[None, None, None])
        seen = w.unary(w.combine(columns, rows, "GREATER", f"{prefix}.later"), "NOT", f"{prefix}.seen")
        if window is None:
            return seen
        width = w.constant(f"{prefix}.width", np.full((1, 1, 1, 1), window, np.int32))
        end = w.combine(columns, width, "SUM", f"{prefix}.end")
        return w.combine(seen, w.combine(end, rows, "GREATER", f"{prefix}.near"), "AND", f"{prefix}.both")

    def _norm(self, x: Any, name: str) -> Any:
        """Add an RMS norm over the last axis, in float32."""
        w, rank = self.writer, len(x.shape)
        assert name in self._vectors, name
        wide = w.cast(x, w.trt.float32, f"{name}.wide")
        square = w.combine(wide, wide, "PROD", f"{name}.square")
        mean = w.mean_of_last_axis(square, f"{name}.mean")
        epsilon = w.scalar(f"{name}.epsilon", self.config.norm_epsilon, rank)
        root = w.unary(w.combine(mean, epsilon, "SUM", f"{name}.sum"), "SQRT", f"{name}.root")
        scaled = w.combine(wide, w.unary(root, "RECIP", f"{name}.inverse"), "PROD", f"{name}.scaled")
        weight = self._weight(f"{name}.weight").reshape((1,) * (rank - 1) + (-1,))
        narrow = w.cast(scaled, self._type, f"{name}.narrow")
        return w.combine(narrow, w.constant(f"{name}.weight", weight), "PROD", name)

    def _linear(self, x: Any, name: str, rows: slice | None = None, part: str = "") -> Any:
        """Add x Wᵀ + b of a module, or of some rows of it."""
        w, module = self.writer, self._linears[name]
        label = f"{name}.{part}" if part else name
        rows = rows or slice(0, module.out)
        leaves = self.tensors.leaves(name)
        algorithm = algorithm_of(module, self.config)
        if algorithm is None:
            weight = w.constant(f"{label}.weight", self._weight(f"{name}.weight")[None, rows])
            x = w.multiply_transposed(x, weight, f"{label}.product")
        else:
            x = multiply_by_module(w, x, algorithm, leaves, rows, self.dtype, label)
        if module.bias:
            bias = self._weight(f"{name}.bias")[rows].reshape(1, 1, -1)
            x = w.combine(x, w.constant(f"{label}.bias", bias), "SUM", f"{label}.biased")
        return x

    def _write_layer(self, x: Any, name: str, layer: int, window: int | None) -> Any:
        w = self.writer
        h = self._attention(self._norm(x, f"{name}.input_layernorm"), f"{name}.attention", layer, window)
        x = w.combine(x, h, "SUM", f"{name}.attended")
        h = self._mlp(self._norm(x, f"{name}.post_layernorm"), f"{name}.mlp")
        return w.combine(x, h, "SUM", f"{name}.output")

    def _attention(self, x: Any, name: str, layer: int, window: int | None) -> Any:
        w, c, s = self.writer, self.config, self.shape
        size, heads, kv_heads = c.head_size, c.num_attention_heads, c.num_key_value_heads
        parts: dict[str, Any] = {}
        start = 0
        for part, count in (("query", heads), ("key", kv_heads), ("value", kv_heads)):
            rows = slice(start, start + count * size)
            flat = self._linear(x, f"{name}.qkv", rows, part)
            parts[part] = w.split_heads(flat, count, size, f"{name}.{part}.heads")
            start = rows.stop
        for part, norm in (("query", "q_layernorm"), ("key", "k_layernorm")):
            if f"{name}.{norm}" in self._vectors:
                parts[part] = self._norm(parts[part], f"{name}.{norm}")
        scale = w.scalar(f"{name}.scale", size**-0.5, 4)
        query = w.combine(
            self._rotate(parts["query"], f"{name}.query"), scale, "PROD", f"{name}.query.scaled"
        )
        parts["key"] = w.cast(self._rotate(parts["key"], f"{name}.key"), self._type, f"{name}.key.narrow")
        cached = {}
        for part in ("key", "value"):
            cache_shape = (s.slots, kv_heads, s.cache_length, size)
            cache = w.add_input(f"{part}_{layer}", self.dtype, cache_shape)
            cached[part] = w.update_cache(cache, parts[part], self._first, f"{name}.{part}.cache")
            w.mark_output(cached[part], f"{part}_{layer}_next")
        query = w.cast(query, self._type, f"{name}.query.narrow")
        attended = w.attend(
            query, cached["key"], cached["value"], self._masks[window], self._lengths, f"{name}.attention"
        )
        return self._linear(w.join_heads(attended, heads * size, f"{name}.joined"), f"{name}.dense")

    def _rotate(self, x: Any, name: str) -> Any:
        """Return rotated queries or keys in float32."""
        wide = self.writer.cast(x, self.writer.trt.float32, f"{name}.wide")
        rotated = self.config.rotary_embedding_dim
        count = 0 if rotated == self.config.head_size else rotated
        return self.writer.rotate(wide, *self._tables, self._positions, f"{name}.rotated", count)

    def _mlp(self, x: Any, name: str) -> Any:
        w = self.writer
        if f"{name}.gate" in self._linears:
            gate, up = self._linear(x, f"{name}.fc"), self._linear(x, f"{name}.gate")
        else:  # [up; gate] in one matrix
            middle = self._linears[f"{name}.fc"].out // 2
            up = self._linear(x, f"{name}.fc", slice(0, middle), "up")
            gate = self._linear(x, f"{name}.fc", slice(middle, 2 * middle), "gate")
        active = w.combine(gate, w.sigmoid(gate, f"{name}.sigmoid"), "PROD", f"{name}.silu")
        return self._linear(w.combine(active, up, "PROD", f"{name}.gated"), f"{name}.proj")
