"""Verify an exported unified checkpoint: its stated format, and the tensors of each matrix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from enginix.errors import ModelError
from enginix.model import ModelWeights, TensorInfo, open_weights
from enginix.model.jsonfile import read_object
from enginix.model.quantization import SIDECAR
from enginix.quantize.formats import MIXED, FormatChoice, QuantizationFormat
from enginix.quantize.library_imports import import_library
from enginix.quantize.source import FLOATS, LAYER, SourceModel
from enginix.tables import load_table

EXPERTS = re.compile(r"experts|moe")
PIECE = 1 << 22  # elements compared at a time


def verify_export(directory: Path, choice: FormatChoice, model: SourceModel) -> dict[str, int]:
    """Check an export against the request and against the model that it was made of.

    Returns:
        Algorithm → number of matrices, ``NO_QUANT`` for those left as they are.

    Raises:
        ModelError: another algorithm or KV cache than requested; a matrix that is missing, silently
            unquantized, of another shape, excluded but changed, or with a scale that is missing, not finite
            or not positive.
    """
    where = str(directory / SIDECAR)
    claimed = read_object(directory / SIDECAR).get("quantization")
    if not isinstance(claimed, dict):
        raise _make_export_error("no quantization object", where)
    if choice.name == MIXED and any(claimed.get("quant_algo") == f.algorithm for f in choice.formats):
        raise ModelError(
            f"the search took {claimed['quant_algo']} for every layer that it quantized: nothing is mixed",
            where=where,
            fix="choose another --effective-bits, or that format instead of mixed",
        )
    for key, expected in (("quant_algo", choice.algorithm), ("kv_cache_quant_algo", choice.kv_algorithm)):
        if claimed.get(key) != expected:
            raise _make_export_error(f"{key} is {claimed.get(key)!r}, and {expected!r} was requested", where)
    weights = open_weights(directory)
    counts: Counter[str] = Counter()
    for name, original in sorted(model.weights.tensors.items()):
        if len(original.shape) > 2 and LAYER.search(name):
            _check_fused(original, weights, claimed, choice, counts)
    for module, shape in sorted(model.matrices.items()):
        if len(shape) != 2:
            continue
        stored, module = module, _name_as_exported(module, model, weights)
        matrix_format = _find_matrix_format(module, claimed, choice)
        info = weights.tensors.get(f"{module}.weight")
        if info is None:
            raise _make_export_error(f"matrix {module} is missing", str(directory))
        if matrix_format is None:
            _check_unchanged(info, model.weights.tensors[f"{stored}.weight"])
            counts["NO_QUANT"] += 1
            continue
        _check_weight(info, shape, matrix_format)
        for leaf in matrix_format.scales:
            _check_scale(weights, f"{module}.{leaf}")
        counts[matrix_format.algorithm] += 1
    if not set(counts) - {"NO_QUANT"}:
        raise _make_export_error("no matrix is quantized", str(directory))
    if choice.kv_cache is not None:
        _check_kv_cache(weights, choice)
    return dict(sorted(counts.items()))


def _make_export_error(what: str, where: str) -> ModelError:
    fix = "no output was written; report it with the model's name, or choose another format"
    return ModelError(what, where=where, fix=fix)


def _name_as_exported(module: str, model: SourceModel, weights: ModelWeights) -> str:
    """Return a matrix's name in the export, which has the prefix that early exporters left out."""
    prefixed = model.prefix + module
    return prefixed if f"{prefixed}.weight" in weights.tensors else module


def _find_matrix_format(
    module: str, claimed: Mapping[str, Any], choice: FormatChoice
) -> QuantizationFormat | None:
    """Return the format of a matrix; None for an unquantized one."""
    if choice.name != "mixed":
        excluded = claimed.get("exclude_modules") or []
        is_excluded = any(fnmatchcase(module, str(p)) or module.startswith(f"{p}.") for p in excluded)
        return None if is_excluded else choice.formats[0]
    entry = (claimed.get("quantized_layers") or {}).get(module)
    if entry is None:
        return None
    for candidate in choice.formats:
        if entry.get("quant_algo") == candidate.algorithm:
            return candidate
    raise _make_export_error(f"{module} is {entry.get('quant_algo')!r}, which is not a candidate", SIDECAR)


def _check_fused(
    original: TensorInfo,
    weights: ModelWeights,
    claimed: Mapping[str, Any],
    choice: FormatChoice,
    counts: Counter[str],
) -> None:
    """Check a tensor of more than two dimensions: a convolution, or experts in one tensor.

    The names that an export gives to separated experts are not known, so only experts that stayed in one
    tensor are checked.
    """
    info = weights.tensors.get(original.name)
    if info is None or info.dtype not in FLOATS:
        return
    module = original.name.removesuffix(".weight")
    if EXPERTS.search(module) and _find_matrix_format(module, claimed, choice) is not None:
        raise _make_export_error(f"tensor {original.name!r} is not quantized", str(info.path))
    _check_unchanged(info, original)
    counts["NO_QUANT"] += 1


def _check_unchanged(info: TensorInfo, original: TensorInfo) -> None:
    """Compare values in the dtype of the export, piece by piece, so that no whole matrix is in memory."""
    same = info.dtype in FLOATS and info.shape == original.shape
    if not same or not all(
        a == b for a, b in zip(_read_pieces(original, info.dtype), _read_pieces(info), strict=True)
    ):
        raise _make_export_error(
            f"{info.name.removesuffix('.weight')} is excluded, but not as it was", str(info.path)
        )


def _read_pieces(info: TensorInfo, dtype: str | None = None) -> Iterator[bytes]:
    """Yield the bytes of a float tensor piece by piece, cast to ``dtype`` if that is another one."""
    left = info.nbytes
    with info.path.open("rb") as f:
        f.seek(info.begin)
        while left:
            raw = f.read(min(left, PIECE * info.itemsize))
            if not raw:
                raise _make_export_error(f"tensor {info.name!r} ends early", str(info.path))
            left -= len(raw)
            yield raw if dtype in (None, info.dtype) else _cast_values(raw, info.dtype, str(dtype))


def _cast_values(raw: bytes, dtype: str, new_dtype: str) -> bytes:
    # As transformers loads it: config.json may name another dtype than a tensor is stored in.
    torch = import_library("torch")
    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    values = torch.frombuffer(bytearray(raw), dtype=dtypes[dtype]).to(dtypes[new_dtype])
    return bytes(values.view(torch.uint8).numpy().tobytes())


def _check_weight(info: TensorInfo, shape: tuple[int, ...], expected_format: QuantizationFormat) -> None:
    if info.dtype != expected_format.weight:
        raise _make_export_error(
            f"tensor {info.name!r} is {info.dtype}, "
            f"and {expected_format.name} stores {expected_format.weight}: not quantized",
            str(info.path),
        )
    packed = 2 if expected_format.bits == 4 else 1
    if info.shape[0] * info.shape[1] * packed != shape[0] * shape[1]:
        raise _make_export_error(
            f"tensor {info.name!r} is {list(info.shape)}, which does not fit the model's {list(shape)}",
            str(info.path),
        )


def _check_kv_cache(weights: ModelWeights, choice: FormatChoice) -> None:
    leaves = load_table("quantize")["kvCache"][choice.kv_cache]["scales"]
    names = [n for n in weights.tensors if n.endswith(tuple(f".{leaf}" for leaf in leaves))]
    if not names:
        raise _make_export_error("no scales of the KV cache", str(weights.directory))
    for name in names:
        _check_scale(weights, name)


def _check_scale(weights: ModelWeights, name: str) -> None:
    import numpy as np

    info = weights.tensors.get(name)
    if info is None:
        raise _make_export_error(
            f"scale {name!r} is missing (the layer saw no calibration data?)", str(weights.directory)
        )
    values = _read_scale_values(info)
    # In NVFP4 a block whose weights are all zero has scale zero; a scale of a row or matrix is never zero.
    least = values.min() >= 0 if info.dtype == "F8_E4M3" else values.min() > 0
    if not np.isfinite(values).all() or not least:
        raise _make_export_error(f"scale {name!r} is not finite and positive", str(info.path))


def _read_scale_values(info: TensorInfo) -> Any:
    """Return float32 values; NVFP4's block scales are read by their bits (in E4M3, 0x7F and 0xFF are NaN)."""
    import numpy as np

    with info.path.open("rb") as f:
        f.seek(info.begin)
        raw = f.read(info.end - info.begin)
    if info.dtype == "F8_E4M3":
        codes = np.frombuffer(raw, np.uint8)
        return np.where(codes & 0x7F == 0x7F, np.nan, np.where(codes & 0x80, -1.0, codes.astype(np.float32)))
    if info.dtype == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if info.dtype in ("F32", "F16"):
        return np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[info.dtype]).astype(np.float32)
    raise _make_export_error(f"scale {info.name!r} is {info.dtype}", str(info.path))
