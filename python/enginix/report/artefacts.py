"""Artefacts for a comparison: description, size and measured figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.bench_record import StoredSpeed, read_bench_record
from enginix.errors import ManifestError, ModelError
from enginix.files import measure_disk_size, sha256_file
from enginix.hub.model_metadata import FILES, extract_model_metadata
from enginix.kinds.registry import KIND_NAMES, get_kind
from enginix.manifest import Manifest
from enginix.model.jsonfile import read_object
from enginix.model.number_formats import read_algorithms
from enginix.report import gate_figures
from enginix.report.gate_figures import GateFigures
from enginix.report.model_origin import ModelOrigin, accept_short_text, make_printable, read_model_origin
from enginix.report.weight_sizes import StoredWeights, measure_stored_weights
from enginix.run_log import ArtefactRun, read_run_log
from enginix.wording import with_article

COMPARED = ("model", "quantized-model", "checkpoint", "export", "engine")
UNQUANTIZED_BITS = 15.0  # a matrix whose weights take fewer is quantized


@dataclass(frozen=True)
class Artefact:
    """One artefact, a row of the comparison.

    Attributes:
        what: ``reference engine``, ``checkpoint``, …
        target: the GPU that it is for; None where it runs anywhere.
        format: TensorRT-LLM's name of the quantization, or the dtype; None where unknown.
        size: bytes on disk, links followed.
        origin: the Hugging Face model that it was made from; None where unknown.
        measured: figures of the gates; None where no gate was run.
        speed: tokens a second, from the given file or the measurement; None where not measured.
        bench: the measurement beside it (``enginix bench``); None without one.
        bench_refusal: why the measurement beside it is not shown; None where nothing is wrong.
        made: what making it took, by the run log beside it; None without one, as of a build of Nix.
        doubts: contradictions in its own statements.
        warning: that its runtime is not verified by enginix; None for one of the table.
    """

    name: str
    what: str
    target: str | None
    format: str | None
    kv_cache: str | None
    size: int
    weights: StoredWeights | None
    origin: ModelOrigin | None
    measured: GateFigures | None
    speed: float | None = None
    bench: StoredSpeed | None = None
    bench_refusal: str | None = None
    made: ArtefactRun | None = None
    doubts: tuple[str, ...] = ()
    warning: str | None = None


def read_artefact(path: Path) -> Artefact:
    """Read one artefact from its directory.

    Raises:
        ModelError: not an artefact, or damaged weights.
        ManifestError: a manifest of an artefact that cannot be compared, or an unreadable one.
        GateError: unreadable evidence.
    """
    if not path.is_dir():
        raise ModelError(
            "no such directory" if not path.exists() else "is a file; an artefact is a directory",
            where=path,
            fix="pass outputs of mkEngine, mkCheckpoint, mkQuantized or mkHfModel, or directories of models",
        )
    artefact_manifest = manifest.read_manifest(path) if (path / manifest.MANIFEST_FILE).exists() else None
    if artefact_manifest is not None and artefact_manifest.artefact not in COMPARED:
        raise ManifestError(
            f"is {with_article(artefact_manifest.artefact)}, which has no weights to compare",
            where=path,
            fix="pass engines, checkpoints or models",
        )
    if (
        artefact_manifest is not None
        and artefact_manifest.artefact == "engine"
        and get_kind(artefact_manifest.kind) is None
    ):
        raise ManifestError(
            f"an engine of unknown kind {ascii(artefact_manifest.kind)[:40]}",
            where=path,
            fix=f"known: {', '.join(KIND_NAMES)}",
        )
    weights_directory = _weights_directory(path, artefact_manifest)
    facts = {} if weights_directory is None else _read_weight_facts(weights_directory)
    if artefact_manifest is None and not facts:
        raise ModelError("no model, checkpoint or engine there", where=path, fix="see enginix compare --help")
    weights = None if weights_directory is None else measure_stored_weights(weights_directory)
    figures = gate_figures.read_gate_figures(path / gate_figures.FILE)
    record = read_bench_record(path)
    claimed_model = artefact_manifest.model if artefact_manifest is not None else {}
    quantization = accept_short_text(claimed_model.get("quantization")) or facts.get("quantization")
    dtype = accept_short_text(claimed_model.get("dtype")) or facts.get("dtype")
    unquantized_name = dtype or ("not quantized" if "quantization" in claimed_model else None)
    warning = None if artefact_manifest is None else manifest.explain_unverified(artefact_manifest)
    artefact = Artefact(
        name=make_printable(manifest.read_artefact_name(path)),
        what=_describe_artefact(path, artefact_manifest),
        target=_read_target(artefact_manifest),
        format=_normalise_algorithm(quantization) or unquantized_name,
        kv_cache=accept_short_text(claimed_model.get("kvCacheQuantization"))
        or facts.get("kvCacheQuantization"),
        size=measure_disk_size(path),
        weights=weights,
        origin=_find_origin(path, artefact_manifest),
        measured=figures,
        speed=record.rate if isinstance(record, StoredSpeed) else None,
        bench=record if isinstance(record, StoredSpeed) else None,
        bench_refusal=record if isinstance(record, str) else None,
        made=read_run_log(path),
        warning=None if warning is None else make_printable(warning, most=400),
    )
    return replace(artefact, doubts=tuple(_list_doubts(artefact, artefact_manifest, facts)))


def _weights_directory(path: Path, artefact_manifest: Manifest | None) -> Path | None:
    if artefact_manifest is None or artefact_manifest.artefact in ("model", "quantized-model", "checkpoint"):
        return path
    subdirectory = _find_weights_folder(artefact_manifest)
    return path / subdirectory if subdirectory is not None and (path / subdirectory).is_dir() else None


def _find_weights_folder(engine_manifest: Manifest) -> str | None:
    kind = get_kind(engine_manifest.kind)
    return None if kind is None else kind.weights_folder


def _read_weight_facts(weights_directory: Path) -> dict[str, Any]:
    """Read ``quantization``, ``kvCacheQuantization``, ``dtype`` from the weights' own configuration."""
    if not (weights_directory / "config.json").is_file():
        return {}
    raw = read_object(weights_directory / "config.json")
    if "architecture" not in raw:
        return extract_model_metadata(
            {n: (weights_directory / n).read_bytes() for n in FILES if (weights_directory / n).is_file()},
            str(weights_directory),
        )
    quantization = raw.get("quantization")
    quantization_keys = quantization if isinstance(quantization, dict) else {}
    return {
        "dtype": accept_short_text(raw.get("dtype")),
        "quantization": accept_short_text(quantization_keys.get("quant_algo")),
        "kvCacheQuantization": accept_short_text(quantization_keys.get("kv_cache_quant_algo")),
        "checkpoint": True,
    }


def _normalise_algorithm(name: str | None) -> str | None:
    """Return TensorRT-LLM's name of an algorithm; None for no quantization."""
    for known, row in read_algorithms().items():
        if name is not None and (name == known or name.lower() in row["aliases"]):
            return None if known == "NO_QUANT" else str(known)
    return name


def _describe_artefact(path: Path, artefact_manifest: Manifest | None) -> str:
    if artefact_manifest is None:
        return "checkpoint" if (path / "rank0.safetensors").exists() else "model"
    if artefact_manifest.artefact == "engine":
        return f"{artefact_manifest.kind} engine"
    return {"quantized-model": "quantized model", "export": "edgellm export"}.get(
        artefact_manifest.artefact, artefact_manifest.artefact
    )


def _read_target(artefact_manifest: Manifest | None) -> str | None:
    target = {} if artefact_manifest is None else artefact_manifest.target
    return accept_short_text(target.get("name")) or accept_short_text(target.get("gpu"))


def _find_origin(path: Path, artefact_manifest: Manifest | None) -> ModelOrigin | None:
    """Return the model at the start of the chain of inputs; a model without manifest is its own origin."""
    if artefact_manifest is None:
        config = path / "config.json"
        is_model = _describe_artefact(path, artefact_manifest) == "model" and config.is_file()
        return ModelOrigin(None, sha256_file(config)) if is_model else None
    inputs: Mapping[str, Any] = artefact_manifest.inputs
    while isinstance(inputs.get("model"), dict):
        inputs = inputs["model"]
    return read_model_origin(inputs)


def _list_doubts(
    artefact: Artefact, artefact_manifest: Manifest | None, facts: Mapping[str, Any]
) -> list[str]:
    doubts = list(artefact.measured.doubts) if artefact.measured is not None else []
    if (
        artefact_manifest is not None
        and "quantization" in facts
        and "quantization" in artefact_manifest.model
    ):
        claimed_algorithm, held_algorithm = (
            _normalise_algorithm(accept_short_text(d["quantization"]))
            for d in (artefact_manifest.model, facts)
        )
        if claimed_algorithm != held_algorithm:
            claimed_name, held_name = (
                name or "not quantized" for name in (claimed_algorithm, held_algorithm)
            )
            doubts.append(f"its manifest names {claimed_name}, the configuration of its weights {held_name}")
    where = (
        _find_weights_folder(artefact_manifest)
        if artefact_manifest is not None and artefact_manifest.artefact == "engine"
        else None
    )
    if where is not None and artefact.weights is None:
        doubts.append(f"its {where}/ has no weights")
    bits = None if artefact.weights is None else artefact.weights.matrix_bits
    row = read_algorithms().get(artefact.format or "", None)
    if bits is not None:
        if row is not None and (row["weightBits"] or 16) <= 8 and bits >= UNQUANTIZED_BITS:
            doubts.append(f"its format is {artefact.format}, but its matrices take {bits:.1f} bits a weight")
        if row is None and artefact.format in ("float32", "float16", "bfloat16") and bits < UNQUANTIZED_BITS:
            doubts.append(f"its format is {artefact.format}, but its matrices take {bits:.1f} bits a weight")
    return doubts + _list_gate_doubts(artefact, artefact_manifest)


def _list_gate_doubts(artefact: Artefact, artefact_manifest: Manifest | None) -> list[str]:
    if artefact_manifest is None or artefact_manifest.artefact != "engine":
        return []
    claims, evidence = artefact_manifest.results.get("gates"), artefact.measured
    if not isinstance(claims, dict):
        return []
    passed = {make_printable(name) for name, verdict in claims.items() if verdict == "passed"}
    if not passed:
        return []
    if evidence is None:
        return [f"its manifest says that gates passed, but it has no {gate_figures.FILE}"]
    wrong = sorted(passed & set(evidence.failed)) or sorted(passed - set(evidence.gates))
    return (
        [f"its manifest says that gate {wrong[0]} passed, but {gate_figures.FILE} does not"] if wrong else []
    )


def label_artefacts(artefacts: Sequence[Artefact]) -> tuple[Artefact, ...]:
    """Give each artefact a unique name; equal names get the properties that differ."""
    labelled = list[Artefact]()
    for artefact in artefacts:
        name, same = artefact.name, [a for a in artefacts if a.name == artefact.name]
        for trait in ("format", "what", "target"):
            trait_value = getattr(artefact, trait)
            alike = [a for a in same if getattr(a, trait) == trait_value]
            if len(alike) < len(same):
                name, same = f"{name}, {trait_value or f'no {trait}'}", alike
        number = 2
        while name in {a.name for a in labelled}:
            name, number = f"{name.removesuffix(f' #{number - 1}')} #{number}", number + 1
        labelled.append(replace(artefact, name=name))
    return tuple(labelled)
