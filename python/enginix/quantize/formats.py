"""The formats of data/quantization/quantize.json, and the checks whether target and model support them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enginix.errors import UsageError
from enginix.model.family_rows import describe_formats, list_family_rows
from enginix.model.llmapi_advice import explain_no_pytorch_class
from enginix.model.number_formats import read_algorithms, runs_on_gpu
from enginix.tables import load_table
from enginix.wording import list_known

if TYPE_CHECKING:
    from enginix.machine.gpu_table import GpuRow

MIXED = "mixed"


@dataclass(frozen=True)
class QuantizationFormat:
    """One row of quantize.json.

    Attributes:
        name: as on the command line.
        algorithm: its name in TensorRT-LLM and hf_quant_config.json.
        recipe: name of ModelOpt's configuration.
        calibrates: whether the result depends on calibration data.
        group: a matrix's columns must be a multiple of it; None without groups.
        weight: safetensors dtype of the stored weight.
        scales: tensors that must lie beside each weight.
        bits: of a weight, scales left out.
        experts: whether mixtures of experts may be quantized to it.
    """

    name: str
    algorithm: str
    recipe: str
    calibrates: bool
    group: int | None
    weight: str
    scales: tuple[str, ...]
    bits: int
    experts: bool


@dataclass(frozen=True)
class FormatChoice:
    """A checked request.

    Attributes:
        name: the format, or ``mixed``.
        formats: the one format; for ``mixed`` the candidates, fewest bits first.
        effective_bits: budget of ``mixed``; None otherwise.
        kv_cache: None or ``fp8``.
        warnings: combinations that can be built but are not verified to serve well.
    """

    name: str
    formats: tuple[QuantizationFormat, ...]
    effective_bits: float | None
    kv_cache: str | None
    warnings: tuple[str, ...] = ()

    @property
    def algorithm(self) -> str:
        """``quant_algo`` that the result must name."""
        if self.name == MIXED:
            return str(load_table("quantize")["mixed"]["algorithm"])
        return self.formats[0].algorithm

    @property
    def kv_algorithm(self) -> str | None:
        """``kv_cache_quant_algo`` that the result must name."""
        return None if self.kv_cache is None else _find_kv_algorithm(self.kv_cache)


def _find_kv_algorithm(kv_cache: str) -> str:
    return str(load_table("quantize")["kvCache"][kv_cache]["algorithm"])


def find_format(name: str) -> QuantizationFormat:
    """Return a format by name.

    Raises:
        UsageError: the format is refused, with the ones to use instead, or unknown.
    """
    rows = load_table("quantize")
    if name in rows["formats"]:
        row = rows["formats"][name]
        algorithm = read_algorithms()[row["algorithm"]]
        return QuantizationFormat(
            name=name,
            algorithm=row["algorithm"],
            recipe=row["recipe"],
            calibrates=row["calibrates"],
            group=algorithm["groupSize"],
            weight=row["weight"],
            scales=tuple(row["scales"]),
            bits=algorithm["weightBits"],
            experts=algorithm["experts"],
        )
    if name in rows["refused"]:
        refused = rows["refused"][name]
        raise UsageError(f"format {name!r}: {refused['why']}", fix=f"use {refused['instead']}")
    raise UsageError(f"unknown format {name!r}", fix=list_known(name, [*rows["formats"], MIXED]))


def _list_formats() -> list[QuantizationFormat]:
    return [find_format(name) for name in load_table("quantize")["formats"]]


def resolve_format(
    name: str,
    *,
    effective_bits: float | None = None,
    candidates: tuple[str, ...] = (),
    kv_cache: str | None = None,
    target_name: str | None = None,
    architecture: str | None = None,
    device: str = "cuda",
) -> FormatChoice:
    """Check a request against the tables, without reading the model.

    Args:
        candidates: formats of ``mixed``; empty for the first pair that the target executes.
        target_name: GPU that will serve the model, of gpus.json; None to check no GPU.
        architecture: of the model, for warnings.
        device: that computes; ``mixed`` runs the quantized layers, and not each can run on a CPU.

    Raises:
        UsageError: unknown or refused format, options that belong to another format, or a target that does
            not execute it.
    """
    rows = load_table("quantize")
    if kv_cache is not None and kv_cache not in rows["kvCache"]:
        refused = rows["kvCacheRefused"].get(kv_cache)
        if refused is None:
            raise UsageError(
                f"unknown KV cache format {kv_cache!r}", fix=f"one of: {', '.join(rows['kvCache'])}"
            )
        raise UsageError(f"a KV cache in {kv_cache}: {refused['why']}", fix=f"use {refused['instead']}")
    chosen: tuple[QuantizationFormat, ...]
    if name != MIXED:
        if effective_bits is not None or candidates:
            raise UsageError(
                "--effective-bits and --candidates are for --format mixed", fix="leave them out, or use mixed"
            )
        chosen = (find_format(name),)
    else:
        chosen = _resolve_mixture(effective_bits, candidates, target_name, device)
    refused = rows["architecturesRefused"]["rows"].get(architecture)
    if refused is not None and name in (refused["formats"] or [name]):
        raise UsageError(
            f"{architecture} cannot be quantized to {name}: {refused['why']}",
            fix="choose another format" if refused["formats"] else "enginix convert the model unquantized",
        )
    kv_algorithm = None if kv_cache is None else _find_kv_algorithm(kv_cache)
    warnings = [
        f"kind edgellm refuses this model: NVIDIA's exporter ignores the {kv_algorithm} KV cache beside "
        f"{f.algorithm}; for that kind, quantize without --kv-cache"
        for f in chosen
        if kv_algorithm is not None and not _has_edgellm_kv_cache(f.algorithm)
    ]
    warnings += _list_unconverted(chosen, architecture)
    if target_name is not None:
        for chosen_format in chosen:
            warnings += _check_target_support(
                chosen_format.algorithm, kv_algorithm, architecture, target_name
            )
    return FormatChoice(name, chosen, effective_bits, kv_cache, tuple(dict.fromkeys(warnings)))


def _list_unconverted(formats: Sequence[QuantizationFormat], architecture: str | None) -> list[str]:
    """Return a warning for each format in which ``enginix convert`` refuses models of an architecture."""
    row = list_family_rows().get(architecture or "")
    if row is None:
        taken = load_table("converters")["converters"]["enginix"]["architectures"]
        if architecture is None or architecture in taken:
            return []
        no_class = explain_no_pytorch_class(architecture)
        served = f"no kind will take it: {no_class}" if no_class else "kind llmapi alone may take it"
        return [f"enginix convert does not take {architecture} in any format, and {served}"]
    return [
        f"enginix convert takes {architecture} {describe_formats(row)} only, and will refuse this model in "
        f"{f.algorithm}"
        for f in formats
        if f.algorithm not in row.get("formats", ())
    ]


def _has_edgellm_kv_cache(algorithm: str) -> bool:
    row = read_algorithms()[algorithm]["edgellm"]
    return row is None or bool(row["kvCache"])


def _resolve_mixture(
    bits: float | None, names: tuple[str, ...], target_name: str | None, device: str
) -> tuple[QuantizationFormat, ...]:
    rows = load_table("quantize")["mixed"]
    cuda_only = rows["cudaOnly"] if device == "cpu" else []
    if bits is None:
        raise UsageError("mixed needs a budget", fix="--effective-bits, for instance 6.0")
    if not names:
        names = next(
            (
                tuple(pair)
                for pair in rows["candidates"]
                if _are_all_supported(pair, target_name) and not set(pair) & set(cuda_only)
            ),
            tuple(rows["candidates"][0]),
        )
    for name in names:
        if name not in rows["allowed"]:
            raise UsageError(
                f"{name!r} is not a candidate of mixed", fix=f"two or more of: {', '.join(rows['allowed'])}"
            )
        if name in cuda_only:
            raise UsageError(
                f"mixed with {name} needs a GPU: its search runs the layers, and ModelOpt emulates {name} on "
                "CUDA alone",
                fix="--device cuda, or other --candidates",
            )
    if len(set(names)) < 2:
        raise UsageError("mixed needs two candidates or more", fix=f"of: {', '.join(rows['allowed'])}")
    chosen = tuple(sorted(map(find_format, dict.fromkeys(names)), key=lambda f: (f.bits, f.name)))
    if not chosen[0].bits < bits < 16:
        raise UsageError(
            f"--effective-bits {bits} is not between {chosen[0].bits} (all {chosen[0].name}) and 16 (none)",
            fix="choose a budget in between",
        )
    return chosen


def _check_target_support(
    algorithm: str, kv_cache: str | None, architecture: str | None, name: str
) -> list[str]:
    """Return the target's warnings or raise its refusal; imports are late, as most builds name no target."""
    from enginix.machine.gpu_table import find_gpu
    from enginix.machine.kind_support import list_running_kinds
    from enginix.machine.target import find_target
    from enginix.runtime.preflight import check_support

    kinds = [kind for kind in list_running_kinds(find_gpu(name)) if kind != "reference"]
    if not kinds:
        raise UsageError(
            f"no software of NVIDIA's that enginix serves with has code for SM {find_gpu(name).sm}",
            where=f"target {name}",
            fix="leave --target out, and serve the model by kind reference, on a CPU; or name another GPU",
        )
    if "tensorrt" not in kinds:  # what TensorRT-LLM's builder refuses does not concern it
        _require_other_kind(algorithm, kinds, find_gpu(name))
        return []
    known = architecture in load_table("engine_classes")["engine"]
    target = find_target(name)
    return check_support(algorithm, kv_cache, architecture if known else None, target, _say_option)


def _require_other_kind(algorithm: str, kinds: Sequence[str], gpu: GpuRow) -> None:
    """Refuse a format that no kind of a GPU without the engine path takes, as nix/check/target.nix does."""
    rows = read_algorithms()

    def is_taken(name: str) -> bool:
        row = rows[name]
        takes = {"llmapi": row["llmapi"] is not False, "edgellm": row.get("edgellm") is not None}
        is_known = any(takes.get(kind, False) for kind in kinds)
        return is_known and runs_on_gpu(row, gpu.sm, gpu.formats, is_compiled=False)

    if is_taken(algorithm):
        return
    offers = [name for name in load_table("engine_support")["suggest"]["formats"] if is_taken(name)]
    raise UsageError(
        f"kind {' or '.join(kinds)} takes no {algorithm} on SM {gpu.sm}",
        where=f"target {gpu.name}",
        fix="".join(f"use {_say_option(name)}, or " for name in offers[:1]) + "leave --target out",
    )


def _say_option(algorithm: str) -> str:
    """Return the option that chooses an algorithm."""
    names = [n for n, row in load_table("quantize")["formats"].items() if row["algorithm"] == algorithm]
    return f"--format {names[0]}" if names else "another format"


def _are_all_supported(names: list[str], target_name: str | None) -> bool:
    if target_name is None:
        return True
    try:
        for name in names:
            _check_target_support(find_format(name).algorithm, None, None, target_name)
    except UsageError:
        return False
    return True


def check_shapes(
    choice: FormatChoice, matrices: Mapping[str, tuple[int, ...]], experts: bool, where: str
) -> None:
    """Check that the format's groups divide every matrix's columns, and that it supports experts.

    Args:
        matrices: module → shape [..., out, in] of each matrix to be quantized.

    Raises:
        UsageError: a matrix that the format cannot hold.
    """
    for chosen_format in choice.formats:
        if experts and not chosen_format.experts:
            usable_formats = [f.name for f in _list_formats() if f.experts]
            raise UsageError(
                f"{chosen_format.name} is for dense models; this one has experts",
                where=where,
                fix=f"use {' or '.join(usable_formats)}",
            )
        if chosen_format.group is None:
            continue
        for module, shape in matrices.items():
            if shape[-1] % chosen_format.group:
                usable_formats = [
                    f.name
                    for f in _list_formats()
                    if f.group is None or all(s[-1] % f.group == 0 for s in matrices.values())
                ]
                raise UsageError(
                    f"{module} has {shape[-1]} columns, "
                    f"and {chosen_format.name} needs a multiple of {chosen_format.group}",
                    where=where,
                    fix=f"use {', '.join(usable_formats)}",
                )


def warn_of_kv_cache(parameters: int) -> str | None:
    """Return a warning if an FP8 KV cache is a risk for a model of this many parameters, else None."""
    rule: dict[str, Any] = load_table("quantize")["kvCacheWarning"]
    return str(rule["text"]) if parameters < rule["parameters"] else None
