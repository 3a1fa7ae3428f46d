"""Arrangements of queries, keys and values, and of transposed matrices, of family_layout and byte_sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.checkpoint import byte_sources, compiled_casts
from enginix.checkpoint.byte_sources import SourceFileReader, TransposedRows
from enginix.checkpoint.family_layout import QKV_KINDS, join_neighbours, select_heads, swap_halves
from enginix.errors import ModelError
from enginix.model import TensorInfo


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from((1, 2, 4)), st.sampled_from(sorted(QKV_KINDS)))
@settings(deadline=None)
def test_every_arrangement_of_q_k_v_gives_each_rank_its_heads(
    groups: int, queries: int, tp: int, kind: str
) -> None:
    """Heads are numbers: a source of each kind, built by its definition, gives a rank's heads in order."""
    heads, kv = groups * queries * tp, groups * tp
    q, k, v = np.arange(heads), 1000 + np.arange(kv), 2000 + np.arange(kv)
    sources = {
        "split": [q, k, v],
        "blocks": [np.concatenate([q, k, v])],
        "groups": [
            np.concatenate([np.r_[q[g * queries : (g + 1) * queries], k[g], v[g]] for g in range(kv)])
        ],
    }[kind]
    for ranks in (tp, heads):  # also more ranks than KV heads
        for rank in range(ranks):
            own, shared = select_heads(heads, kv, ranks, rank)
            slices = join_neighbours(QKV_KINDS[kind]((heads, kv, kv), (own, shared, shared)))
            taken = np.concatenate([sources[number][begin:end] for number, (begin, end) in slices])
            first = rank * (heads // ranks) // queries
            owners = range(first, first + max(1, kv // ranks))
            expected = [*range(*own), *(1000 + h for h in owners), *(2000 + h for h in owners)]
            assert taken.tolist() == expected


@given(st.integers(1, 20), st.data())
def test_swapped_halves(width: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, width - 1))
    end = data.draw(st.integers(begin + 1, width))
    first_half, second_half = np.arange(width), 100 + np.arange(width)
    matrix = np.concatenate([first_half, second_half])
    taken = np.concatenate([matrix[slice(*rows)] for rows in swap_halves(width, (begin, end))])
    assert taken.tolist() == [*second_half[begin:end], *first_half[begin:end]]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["F16", "F32"])
@pytest.mark.parametrize("band", [1 << 20, 64])
def test_transposed_rows(
    compiled: bool, dtype: str, band: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_sources, "TRANSPOSED", band)
    monkeypatch.setattr(byte_sources, "CHUNK", 128)
    if not compiled:
        monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda: None)
    kind = {"F16": "<u2", "F32": "<u4"}[dtype]
    matrix = np.random.default_rng(5).integers(0, 0x7C00, (37, 70)).astype(kind)
    (tmp_path / "weights").write_bytes(b"head" + matrix.tobytes())
    info = TensorInfo("w", dtype, matrix.shape, tmp_path / "weights", 4, 4 + matrix.nbytes)
    for rows, cols in (((0, 70), (0, 37)), ((3, 68), (5, 29)), ((69, 70), (36, 37))):
        part = TransposedRows(info, 37, 70, rows, cols)
        with SourceFileReader() as reader:
            made = b"".join(bytes(block) for block in part.blocks(reader))
        assert len(made) == part.size and made == matrix.T[slice(*rows), slice(*cols)].tobytes()


def test_parts_of_one_transposed_matrix_are_made_of_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = []

    class CountingReader(SourceFileReader):
        def read_into(self, path: Path, begin: int, view: memoryview) -> None:
            ranges.append((begin, begin + len(view)))
            super().read_into(path, begin, view)

    matrix = np.arange(6 * 12, dtype="<u2").reshape(6, 12)
    (tmp_path / "weights").write_bytes(matrix.tobytes())
    info = TensorInfo("w", "F16", matrix.shape, tmp_path / "weights", 0, matrix.nbytes)
    with CountingReader() as reader:
        for rows in ((0, 4), (4, 8), (8, 12)):
            made = b"".join(bytes(b) for b in TransposedRows(info, 6, 12, rows, (0, 6)).blocks(reader))
            assert made == matrix.T[slice(*rows)].tobytes()
        assert ranges == [(0, matrix.nbytes)]
        # Another reading takes the buffer: the matrix is read again.
        reader.read(info.path, 2, 6)
        made = b"".join(bytes(b) for b in TransposedRows(info, 6, 12, (0, 4), (0, 6)).blocks(reader))
        assert made == matrix.T[:4].tobytes()
    assert ranges == [(0, matrix.nbytes), (2, 6), (0, matrix.nbytes)]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_transposed_matrix_that_ends_early(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_sources, "TRANSPOSED", 64)
    if not compiled:
        monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda: None)
    (tmp_path / "weights").write_bytes(bytes(37 * 70 * 2 - 1))
    info = TensorInfo("w", "F16", (37, 70), tmp_path / "weights", 0, 37 * 70 * 2)
    with SourceFileReader() as reader, pytest.raises(ModelError, match="ends at byte 5179"):
        list(TransposedRows(info, 37, 70, (0, 70), (0, 37)).blocks(reader))


@pytest.mark.parametrize("at", [0, 37 * 70 - 1])
def test_a_transposed_matrix_with_nan(at: int, tmp_path: Path) -> None:
    matrix = np.zeros(37 * 70, "<f2")
    matrix[at] = np.nan
    (tmp_path / "weights").write_bytes(matrix.tobytes())
    info = TensorInfo("w", "F16", (37, 70), tmp_path / "weights", 0, matrix.nbytes)
    with SourceFileReader() as reader, pytest.raises(ModelError, match="'w' holds NaN"):
        list(TransposedRows(info, 37, 70, (0, 70), (0, 37)).blocks(reader))
