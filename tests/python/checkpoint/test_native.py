"""The compiled casts give NumPy's bytes, in every variant that this machine can run."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.checkpoint import compiled_casts, numbers
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping

SCRIPT = Path(compiled_casts.__file__).with_name("casts.sh")
CPU = Path("/proc/cpuinfo").read_text()
# What the compiler makes of the loops.
VARIANTS = {"as it is built": []}
if platform.machine() == "x86_64":
    VARIANTS |= {"oldest": ["-DFOR_EVERY_CPU=", "-march=x86-64"]}
    if "avx2" in CPU:
        VARIANTS |= {"AVX2": ["-DFOR_EVERY_CPU=", "-march=x86-64-v3"]}
    if "avx512bw" in CPU:
        VARIANTS |= {"AVX-512": ["-DFOR_EVERY_CPU=", "-march=x86-64-v4"]}
EVERY16 = np.arange(1 << 16, dtype=np.uint16)
# Around every boundary of rounding to the upper half, and to float16's 10 bits.
LOW = np.array(
    [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xEFFF, 0xF000, 0xFFFF],
    np.uint32,
)
PATTERNS = {
    "BF16": EVERY16,
    "F16": EVERY16,
    "F32": (EVERY16.astype(np.uint32)[:, None] << np.uint32(16) | LOW).reshape(-1),
}
CASTS = [("BF16", "F32"), ("F16", "F32"), ("F16", "BF16"), ("F32", "BF16"), ("F32", "F16"), ("BF16", "F16")]


# As it is built, the library takes the loops for this CPU; the oldest are those that any other has.
FAST = ("as it is built", "oldest")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in VARIANTS],
)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    library = tmp_path_factory.mktemp("native") / "casts.so"
    done = subprocess.run(
        ["bash", SCRIPT, library, *VARIANTS[request.param]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr  # no warning either
    loaded = compiled_casts.load_compiled_casts(library)
    assert loaded is not None
    return loaded


def numpy_cast(x: Any, source: str, target: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_casts, "find_compiled_casts", lambda: None)
        return numbers.cast_floats(x, source, target)


def finite_as_float16(patterns: Any, source: str) -> Any:
    magnitude = (patterns.astype(np.uint32) << np.uint32(16 if source == "BF16" else 0)) & np.uint32(
        0x7FFFFFFF
    )
    return patterns[magnitude < 0x477FF000]  # 65520 is the first that rounds to infinity


@pytest.mark.parametrize(("source", "target"), CASTS, ids="-".join)
def test_casts(compiled: Any, source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda: compiled)
    patterns = finite_as_float16(PATTERNS[source], source) if target == "F16" else PATTERNS[source]
    into = np.zeros(patterns.size, numbers.numpy_dtype(target))
    assert compiled_casts.cast_compiled(patterns.view(numbers.numpy_dtype(source)), source, target, into)
    assert into.tobytes() == expected_cast(source, target)


@functools.cache
def expected_cast(source: str, target: str) -> bytes:
    """Return what NumPy makes of the patterns, for all variants."""
    patterns = finite_as_float16(PATTERNS[source], source) if target == "F16" else PATTERNS[source]
    return bytes(numpy_cast(patterns, source, target).tobytes())


@pytest.mark.parametrize("height", [8, 32, 33, 96])
@pytest.mark.parametrize("width", [31, 32, 70])
@pytest.mark.parametrize("kind", ["<u2", "<u4"])
def test_transposition(
    compiled: Any, kind: str, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda: compiled)
    stored = np.random.default_rng(7).integers(0, 1 << 16, (height, width + 5)).astype(kind)
    columns = stored[:, 3 : 3 + width]
    out = np.empty((width, height), kind)
    compiled_casts.transpose_matrix(columns, out)
    assert (out == columns.T).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_non_finite_values_are_found(compiled: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda: compiled)
    mask = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}[dtype]
    for pattern in PATTERNS[dtype][:: 1 if dtype != "F32" else 97]:
        values = np.zeros(70, pattern.dtype)
        values[int(pattern) % 70] = pattern
        assert compiled_casts.has_masked_bits(values, mask) is bool(int(pattern) & mask == mask)
        assert numbers.are_any_non_finite(values, dtype) is bool(int(pattern) & mask == mask)


@pytest.mark.parametrize("source", ["F32", "BF16"])
@pytest.mark.parametrize("odd", [65520.0, -70000.0, np.inf, -np.inf, np.nan])
def test_what_is_not_finite_as_float16_is_left_to_numpy(
    compiled: Any, source: str, odd: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda: compiled)
    values = np.full(1000, 0.25, np.float32).astype(numbers.numpy_dtype(source))
    values[777] = odd
    assert not compiled_casts.cast_compiled(values, source, "F16", np.zeros(1000, np.float16))
    if np.isfinite(odd):
        with pytest.raises(OverflowError, match="does not fit float16"):
            numbers.cast_floats(values, source, "F16")
    else:
        made = numbers.cast_floats(values, source, "F16")
        assert made.tobytes() == values.astype(np.float32).astype(np.float16).tobytes()


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=600), cast=st.sampled_from(CASTS), at=st.integers(0, 3))
def test_any_length_and_place(compiled: Any, data: bytes, cast: tuple[str, str], at: int) -> None:
    """Nothing beside the array is written, wherever it begins."""
    source, target = (numbers.numpy_dtype(c) for c in cast)
    values = np.frombuffer(data[: len(data) // source.itemsize * source.itemsize], source)
    if cast[1] == "F16":
        values = values[np.abs(values.astype(np.float32)) < 65000]
    around = np.full(len(values) + 8, 7, np.uint8).repeat(target.itemsize).view(target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_casts, "find_compiled_casts", lambda: compiled)
        assert compiled_casts.cast_compiled(values, *cast, around[at : at + len(values)])
    expected = np.full(len(values) + 8, 7, np.uint8).repeat(target.itemsize).view(target)
    expected[at : at + len(values)] = numpy_cast(values, *cast)
    assert around.tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=40)
@given(
    scale=st.floats(2.0**-100, 2.0**100, width=32),
    target=st.floats(2.0**-100, 2.0**100, width=32),
    size=st.integers(0, 700),
)
def test_fp8_rescale(compiled: Any, scale: float, target: float, size: int) -> None:
    codes = np.resize(np.arange(256, dtype=np.uint8), size + 8)
    into = np.full(size + 8, 7, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_casts, "find_compiled_casts", lambda: compiled)
        table = numbers.make_fp8_rescale_table(scale, target)
        assert compiled_casts.lookup_fp8(codes[:size], table, into[:size])
        patch.setattr(compiled_casts, "find_compiled_casts", lambda: None)
        assert into[:size].tobytes() == numbers.rescale_fp8(codes[:size], scale, target).tobytes()
    assert (into[size:] == 7).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_checkpoints_do_not_depend_on_it(
    compiled: Any, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_models.write(tmp_path / "model", random_models.config("MixtralForCausalLM"))
    options = ConvertOptions(dtype=dtype, mapping=CheckpointMapping(2))
    for name, library in (("compiled", compiled), ("numpy", None)):
        monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda library=library: library)
        convert_model(tmp_path / "model", tmp_path / name, options)
    for path in (tmp_path / "compiled").iterdir():
        assert path.read_bytes() == (tmp_path / "numpy" / path.name).read_bytes()


def test_without_a_library_or_with_a_foreign_one(tmp_path: Path) -> None:
    assert compiled_casts.load_compiled_casts(tmp_path / "none.so") is None
    (tmp_path / "foreign.so").write_bytes(b"\x7fELF of another machine")
    assert compiled_casts.load_compiled_casts(tmp_path / "foreign.so") is None


def _use_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An installation without compiled casts, and an empty cache."""
    monkeypatch.setattr(compiled_casts, "LIBRARY", tmp_path / "none.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return compiled_casts.cache_directory()


def _load() -> Any:
    return compiled_casts.find_compiled_casts.__wrapped__()


def test_the_first_use_compiles_into_the_cache_and_the_next_loads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = _use_cache(monkeypatch, tmp_path)
    assert _load() is not None
    [made] = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700 and made.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(compiled_casts, "_compile_casts", lambda _: pytest.fail("compiled again"))
    assert _load() is not None


@pytest.mark.parametrize("which", ["directory", "file"])
def test_a_cache_that_others_can_write_is_not_loaded(
    which: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = compiled_casts.find_compiled_casts()
    assert library is not None
    cache = _use_cache(monkeypatch, tmp_path)

    def copy_library(path: Path) -> Any:
        shutil.copyfile(library._name, path)
        path.chmod(0o700)
        return compiled_casts.load_compiled_casts(path)

    monkeypatch.setattr(compiled_casts, "_compile_casts", copy_library)
    assert _load() is not None
    [made] = cache.iterdir()
    (cache if which == "directory" else made).chmod(0o777)
    assert _load() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("CC", "no-such-compiler"), ("CC", "false"), ("PATH", ""), ("XDG_CACHE_HOME", "/proc/none")],
)
def test_without_a_compiler_or_a_cache_numpy_computes(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = _use_cache(monkeypatch, tmp_path)
    monkeypatch.setenv(name, value)
    assert _load() is None
    assert not cache.exists() or not list(cache.iterdir())
