"""Coverage on graphs made by hand: wherever the exporter may put a tensor, it is found; changed, not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from enginix.kinds.edgellm import coverage, int4_layouts
from enginix.kinds.edgellm.errors import ExportError
from enginix.kinds.edgellm.graph import Constant, Graph, Node
from enginix.model import read_header


def constant(name: str, array: np.ndarray) -> Constant:
    dtype = {"float16": "FLOAT16", "float32": "FLOAT", "int8": "INT8"}[array.dtype.name]
    data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    return Constant(name, dtype, array.shape, data)


def account(directory: Path, tensors: dict[str, np.ndarray], constants: list[Constant]) -> dict[str, object]:
    save_file(tensors, directory / "model.safetensors")
    graph = Graph(directory / "model.onnx", {c.name: c for c in constants}, (), (), (), {})
    return coverage.check_coverage(
        graph, read_header(directory / "model.safetensors").tensors.values(), None, False
    )


def tensor(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(ml_dtypes.bfloat16)


def half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).astype(np.float16)


@given(
    seed=st.integers(0, 1 << 30),
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    columns=st.integers(2, 90),
    transposed=st.booleans(),
    named=st.booleans(),
)
def test_joined_and_transposed_matrices_are_found(
    seed: int, rows: list[int], columns: int, transposed: bool, named: bool, tmp_path: Path
) -> None:
    parts = {f"m{i}.weight": tensor(seed + i, (n, columns)) for i, n in enumerate(rows)}
    joined = np.concatenate([half(p) for p in parts.values()])
    joined = joined.T if transposed else joined
    name = "_model.m0.weight" if named and len(rows) == 1 else "val_1"
    found = account(tmp_path, parts, [constant(name, joined)])
    assert found["tensors"] == len(parts)


@given(seed=st.integers(0, 1 << 30), n=st.integers(2, 30), k=st.integers(2, 80), transposed=st.booleans())
def test_one_changed_element_is_a_missing_weight(
    seed: int, n: int, k: int, transposed: bool, tmp_path: Path
) -> None:
    weight = tensor(seed, (n, k))
    stored = half(weight)
    stored[seed % n, seed % k] += np.float16(1)
    with pytest.raises(ExportError, match=r"m\.weight"):
        account(tmp_path, {"m.weight": weight}, [constant("val_1", stored.T if transposed else stored)])


def test_a_weight_from_nowhere_is_named(tmp_path: Path) -> None:
    weight = tensor(1, (4, 8))
    more = [constant("val_1", half(weight)), constant("val_2", half(tensor(2, (4, 8))))]
    with pytest.raises(ExportError, match="val_2"):
        account(tmp_path, {"m.weight": weight}, more)


def test_half_a_joined_matrix_from_nowhere_is_named(tmp_path: Path) -> None:
    weight = tensor(1, (4, 8))
    joined = np.concatenate([half(weight), half(tensor(2, (4, 8)))])
    with pytest.raises(ExportError, match="val_1"):
        account(tmp_path, {"m.weight": weight}, [constant("val_1", joined)])


def test_half_a_joined_bias_from_nowhere_is_named(tmp_path: Path) -> None:
    bias = tensor(1, (8,))
    joined = np.concatenate([half(bias), half(tensor(2, (8,)))])
    with pytest.raises(ExportError, match="val_1"):
        account(tmp_path, {"q_proj.bias": bias}, [constant("val_1", joined)])


def test_zeros_of_a_matrix_are_no_constant(tmp_path: Path) -> None:
    weight = tensor(1, (4, 8))
    zeros = constant("val_2", np.zeros((4, 8), np.float16))
    with pytest.raises(ExportError, match="val_2"):
        account(tmp_path, {"m.weight": weight}, [constant("val_1", half(weight)), zeros])


def test_a_scale_that_the_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    weight = tensor(1, (4, 8))
    scale = constant("_model.m.weight_scale", np.array(0.5, np.float32))
    with pytest.raises(ExportError, match="weight_scale"):
        account(tmp_path, {"m.weight": weight}, [constant("val_1", half(weight)), scale])


def test_a_scale_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    tensors = {"m.weight_scale": np.array(1e-8, np.float32)}
    stored = constant("_model.m.weight_scale", np.array(1e-8, np.float16))
    with pytest.raises(ExportError, match="float16"):
        account(tmp_path, tensors, [stored])


RESTORE = (int4_layouts.restore_fragment_order, int4_layouts.restore_interleaved_order)


def pack_in_order(codes: np.ndarray, restore: Any) -> np.ndarray:
    """Put codes where a layout has them; test_execution.py holds the layouts to the wheel's own packers."""
    index = np.arange(codes.size)
    places = np.zeros(codes.shape, np.int64)
    for digit in range(4):
        half = (index >> 4 * digit & 15).reshape(-1, 2)
        places += restore((half[:, 0] | half[:, 1] << 4).astype(np.uint8), *codes.shape).astype(np.int64) << (
            4 * digit
        )
    moved = np.empty(codes.size, np.uint8)
    moved[places.reshape(-1)] = codes.reshape(-1)
    return (moved[::2] | moved[1::2] << 4).view(np.int8)


@given(seed=st.integers(0, 1 << 30), restore=st.sampled_from(RESTORE))
def test_int4_codes_are_compared_in_the_plugins_order(seed: int, restore: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (64, 64), np.uint8)
    stored = pack_in_order(int4_layouts.read_checkpoint_codes(packed), restore)
    account(tmp_path, {"m.weight": packed}, [constant("_model.m.weight", stored.reshape(16, -1))])
    # The same codes, two of them in each other's place.
    at = int(np.flatnonzero(stored[1:] != stored[:-1])[seed % 1000])
    stored[at], stored[at + 1] = stored[at + 1], stored[at]
    with pytest.raises(ExportError, match=r"m\.weight"):
        account(tmp_path, {"m.weight": packed}, [constant("_model.m.weight", stored.reshape(16, -1))])


@given(
    seed=st.integers(0, 1 << 30),
    copies=st.integers(2, 4),
    transposed=st.booleans(),
    zero=st.booleans(),
    joined=st.booleans(),
)
def test_equal_tensors_are_matched_to_places_of_their_own(
    seed: int, copies: int, transposed: bool, zero: bool, joined: bool, tmp_path: Path
) -> None:
    """Copied layers, gate = up, zeros of an expanded model: as many places as tensors, each claimed."""
    weight = np.zeros((4, 8), ml_dtypes.bfloat16) if zero else tensor(seed, (4, 8))
    vector = np.zeros(6, ml_dtypes.bfloat16) if zero else tensor(seed + 1, (6,))
    tensors = {f"m{i}.weight": weight for i in range(copies)}
    tensors |= {f"m{i}.bias": vector for i in range(copies)}
    matrices = [np.concatenate([half(weight)] * copies)] if joined else [half(weight)] * copies
    vectors = [np.concatenate([half(vector)] * copies)] if joined else [half(vector)] * copies
    stored = [m.T if transposed else m for m in matrices] + vectors
    constants = [constant(f"val_{i}", array) for i, array in enumerate(stored)]
    assert account(tmp_path, tensors, constants)["tensors"] == 2 * copies
    # One place too many is a weight from nowhere, which no twin explains.
    with pytest.raises(ExportError, match="val_more"):
        account(tmp_path, tensors, [*constants, constant("val_more", half(tensor(seed + 2, (4, 8))))])


def test_one_constant_may_stand_for_equal_tensors(tmp_path: Path) -> None:
    weight = tensor(1, (4, 8))
    assert account(tmp_path, {"a.weight": weight, "b.weight": weight}, [constant("val_1", half(weight))])


def test_a_square_matrix_is_not_claimed_from_two_sides(tmp_path: Path) -> None:
    weight = np.zeros((8, 8), ml_dtypes.bfloat16)
    constants = [constant("val_1", half(weight)), constant("val_2", half(weight))]
    assert account(tmp_path, {"a.weight": weight, "b.weight": weight}, constants)["tensors"] == 2


def test_a_constant_is_named_by_the_module_that_reads_it(tmp_path: Path) -> None:
    weight = tensor(1, (4, 8))
    save_file({"m.weight": weight}, tmp_path / "model.safetensors")
    constants = [constant("val_1", half(weight)), constant("val_48", half(tensor(2, (4, 8))))]
    node = Node("MatMul", "", "node_linear_3", ("x", "val_48"), ("y",), {}, "model.layers.1.mlp.up_proj")
    graph = Graph(tmp_path / "model.onnx", {c.name: c for c in constants}, (node,), (), (), {})
    with pytest.raises(ExportError, match=r"val_48 \(4x8 of model\.layers\.1\.mlp\.up_proj\)"):
        coverage.check_coverage(
            graph, read_header(tmp_path / "model.safetensors").tensors.values(), None, False
        )
