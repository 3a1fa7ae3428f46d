"""The unified checkpoint, read back: its claim, and what each matrix has beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from enginix.errors import ModelError
from enginix.model import TensorInfo, Weights, open_weights
from enginix.model.jsonfile import read_object
from enginix.model.quantization import SIDECAR
from enginix.quantize.formats import Choice, Format
from enginix.quantize.source import FLOATS, Model
from enginix.tables import table

_FIX = "nothing was written; report it with the model's name, or choose another format"


def verify(directory: Path, choice: Choice, model: Model) -> dict[str, int]:
    """Holds an export to the request and to the model that it was made of.

    Returns:
        Algorithm → number of matrices, ``NO_QUANT`` for those left as they are.

    Raises:
        ModelError: another algorithm or KV cache than asked for; a matrix missing, silently unquantized, of
        another
            shape, or with a scale that is missing, not finite or not positive.
    """
    where = str(directory / SIDECAR)
    claimed = read_object(directory / SIDECAR).get("quantization")
    if not isinstance(claimed, dict):
        raise ModelError("no quantization object", where=where, fix=_FIX)
    for key, asked in (("quant_algo", choice.algorithm), ("kv_cache_quant_algo", choice.kv_algorithm)):
        if claimed.get(key) != asked:
            raise ModelError(
                f"{key} is {claimed.get(key)!r}, and {asked!r} was asked for", where=where, fix=_FIX
            )
    weights = open_weights(directory)
    counts: Counter[str] = Counter()
    for module, shape in sorted(model.matrices.items()):
        if len(shape) != 2:  # fused experts, which the export takes apart
            continue
        found = _format_of(module, claimed, choice)
        info = weights.tensors.get(f"{module}.weight")
        if info is None:
            raise ModelError(f"matrix {module} is missing", where=str(directory), fix=_FIX)
        if found is None:
            if info.dtype not in FLOATS or info.shape != shape:
                raise ModelError(f"{module} is excluded, but not as it was", where=str(directory), fix=_FIX)
            counts["NO_QUANT"] += 1
            continue
        _check_weight(info, shape, found)
        for leaf in found.scales:
            _check_scale(weights, f"{module}.{leaf}")
        counts[found.algorithm] += 1
    if not set(counts) - {"NO_QUANT"}:
        raise ModelError("no matrix is quantized", where=str(directory), fix=_FIX)
    if choice.kv_cache is not None:
        _check_kv_cache(weights, choice)
    return dict(sorted(counts.items()))


def _format_of(module: str, claimed: Mapping[str, Any], choice: Choice) -> Format | None:
    """The format of a matrix, or None where it stays as it is."""
    if choice.name != "mixed":
        excluded = claimed.get("exclude_modules") or []
        out = any(fnmatchcase(module, str(p)) or module.startswith(f"{p}.") for p in excluded)
        return None if out else choice.formats[0]
    entry = (claimed.get("quantized_layers") or {}).get(module)
    if entry is None:
        return None
    for found in choice.formats:
        if entry.get("quant_algo") == found.algorithm:
            return found
    raise ModelError(
        f"{module} is {entry.get('quant_algo')!r}, which is no candidate", where=SIDECAR, fix=_FIX
    )


def _check_weight(info: TensorInfo, shape: tuple[int, ...], found: Format) -> None:
    if info.dtype != found.weight:
        raise ModelError(
            f"tensor {info.name!r} is {info.dtype}, and {found.name} stores {found.weight}: not quantized",
            where=str(info.path),
            fix=_FIX,
        )
    packed = 2 if found.bits == 4 else 1
    if info.shape[0] * info.shape[1] * packed != shape[0] * shape[1]:
        raise ModelError(
            f"tensor {info.name!r} is {list(info.shape)}, made of {list(shape)}",
            where=str(info.path),
            fix=_FIX,
        )


def _check_kv_cache(weights: Weights, choice: Choice) -> None:
    leaves = table("quantize")["kvCache"][choice.kv_cache]["scales"]
    names = [n for n in weights.tensors if n.endswith(tuple(f".{leaf}" for leaf in leaves))]
    if not names:
        raise ModelError("no scales of the KV cache", where=str(weights.directory), fix=_FIX)
    for name in names:
        _check_scale(weights, name)


def _check_scale(weights: Weights, name: str) -> None:
    import numpy as np

    info = weights.tensors.get(name)
    if info is None:
        raise ModelError(
            f"scale {name!r} is missing (the layer saw no calibration data?)",
            where=str(weights.directory),
            fix=_FIX,
        )
    values = _values(info)
    # A block whose weights are all zero has scale zero in NVFP4; a row or a matrix has not.
    least = values.min() >= 0 if info.dtype == "F8_E4M3" else values.min() > 0
    if not np.isfinite(values).all() or not least:
        raise ModelError(f"scale {name!r} is not finite and positive", where=str(info.path), fix=_FIX)


def _values(info: TensorInfo) -> Any:
    """float32 values; NVFP4's block scales are read by their bits, NaN being 0x7F and 0xFF in E4M3."""
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
    raise ModelError(f"scale {info.name!r} is {info.dtype}", where=str(info.path), fix=_FIX)
