"""Compare all kinds of engines of one model: whether they support it, their size and their targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from enginix.errors import EnginixError, ModelError
from enginix.hub import lock
from enginix.hub.model_metadata import FILES, extract_model_metadata
from enginix.kinds.registry import list_kinds
from enginix.machine.gpu_table import GpuRow, find_gpu
from enginix.machine.kind_support import explain_unsupported_gpu, find_first_version, has_code
from enginix.model.config import read_model_config
from enginix.model.number_formats import describe_fallback, find_fallback
from enginix.report.model_origin import accept_short_text
from enginix.tables import load_table

FLOAT16_DIVISORS = {"float32": 2}  # divisor of the weights' size in float16; other types keep their size


@dataclass(frozen=True)
class ComparedModel:
    """The properties of a model that a comparison of kinds uses.

    Attributes:
        weights: bytes on disk.
        method: ``quant_method`` of config.json; None or ``modelopt`` for ModelOpt's.
        directory: of the model; None for a lock, which has no config.json.
        rotation: type of the rotary scaling; None where it is not known, as of a lock.
        model_type: ``model_type`` of config.json.
        head_size: elements of an attention head; None where it is not known.
    """

    name: str
    architecture: str | None
    quantization: str | None
    dtype: str | None
    weights: int
    method: str | None = None
    directory: Path | None = None
    rotation: str | None = None
    model_type: str | None = None
    head_size: int | None = None


@dataclass(frozen=True)
class KindRow:
    """One kind of engine of one model.

    Attributes:
        takes: whether the model can become this kind; None where it is not known.
        why: reasons against it, or the unknowns.
        size: estimated bytes on disk of the served files, weights included.
        targets: names of gpus.json that run it; None for any machine.
    """

    kind: str
    takes: bool | None
    why: tuple[str, ...]
    size: int
    targets: tuple[str, ...] | None
    described: Mapping[str, str]


def read_compared_model(where: Path) -> ComparedModel:
    """Read a model from its directory or its lock.

    Raises:
        ModelError: the path is neither.
    """
    rotation = None
    if where.is_dir():
        if not (where / FILES[0]).is_file():
            raise ModelError(f"no {FILES[0]}", where=where, fix="pass a model's directory, or its lock")
        facts = extract_model_metadata(
            {n: (where / n).read_bytes() for n in FILES if (where / n).is_file()}, str(where)
        )
        sizes = {p.name: p.stat().st_size for p in where.iterdir() if p.is_file()}
        name, rotation = where.resolve().name, _find_rotation(where)
    elif where.is_file():
        pinned = lock.read_lock(where)
        if pinned.type != "model":
            raise ModelError("is the lock of a dataset", where=where, fix="pass a model's lock")
        facts, name = dict(pinned.model), pinned.repo
        sizes = {f.path: f.size for f in pinned.files}
    else:
        raise ModelError(
            "no such file or directory", where=where, fix="pass a model's directory, or its lock"
        )
    weights = sum(size for path, size in sizes.items() if path.endswith(".safetensors"))
    return ComparedModel(
        name=name,
        architecture=accept_short_text(facts.get("architecture")),
        quantization=accept_short_text(facts.get("quantization")),
        dtype=accept_short_text(facts.get("dtype")),
        weights=weights,
        method=accept_short_text(facts.get("quantizationMethod")),
        directory=where if where.is_dir() else None,
        rotation=rotation,
        model_type=accept_short_text(facts.get("modelType")),
        head_size=head_size if isinstance(head_size := facts.get("headSize"), int) else None,
    )


def _find_rotation(directory: Path) -> str | None:
    """Return the type of a model's rotary scaling; None for a model that is not converted."""
    try:
        return read_model_config(directory).rope.type
    except EnginixError:
        return None


def compare_kinds(model: ComparedModel, target: str | None = None) -> tuple[KindRow, ...]:
    """Return one row for each kind.

    Args:
        target: a GPU of gpus.json; kinds that it does not run give it as a reason.

    Raises:
        UsageError: unknown target.
    """
    gpu = None if target is None else find_gpu(target)
    # Models that other converters alone take are left to the tables.
    is_converted = model.architecture in load_table("converters")["converters"]["enginix"]["architectures"]
    rows = []
    for kind in list_kinds():
        verdict = kind.judge_model(model.architecture, model.quantization, model.method)
        takes, why, targets = verdict.takes, verdict.why, verdict.targets
        is_checked = kind.model_check is not None or (is_converted and kind.built_from == "checkpoint")
        if takes and is_checked:
            # A comparison of engines in Nix has no planning, and asks about no model.
            from enginix.kinds.planning import checkpoint_refusal

            if model.directory is None:
                refusal = checkpoint_refusal.explain_lock_refusal(kind, model.architecture, model.model_type)
                why = (*why, checkpoint_refusal.LOCK_LACKS_VALUES)
            else:
                refusal = checkpoint_refusal.explain_config_refusal(kind, model.directory)
            takes, why = (takes, why) if refusal is None else (False, (refusal,))
        refused = kind.explain_rotation(model.rotation) if model.rotation is not None else None
        if refused is None and model.head_size is not None:
            refused = kind.explain_head_size(model.head_size)
        if takes is not False and refused is not None:
            takes, why, targets = False, (refused,), ()
        if (
            takes is not False
            and gpu is not None
            and targets is not None
            and not _is_among(kind.name, gpu, targets)
        ):
            takes, why = False, (_explain_other_gpu(kind.name, model.quantization, gpu, targets),)
        elif gpu is not None and takes is not False:
            why = (*why, *_list_runtime_needs(kind.name, model.quantization, gpu))
        # A kind that serves the model's own files keeps their type.
        divisor = 1 if kind.weights_folder == "model" else FLOAT16_DIVISORS.get(model.dtype or "", 1)
        described = {"is": kind.summary, **load_table("kinds")["kinds"][kind.name]}
        rows.append(KindRow(kind.name, takes, why, model.weights // divisor, targets, described))
    return tuple(rows)


def _explain_other_gpu(kind: str, quantization: str | None, gpu: GpuRow, targets: tuple[str, ...]) -> str:
    """Return why a kind that takes a model does not run it on a GPU."""
    if unsupported := explain_unsupported_gpu(kind, gpu):
        return f"{unsupported.why} (fix: {unsupported.fix})"
    runs = ", ".join(map(str, sorted({find_gpu(target).sm for target in targets})))
    return (
        f"{gpu.name} is SM {gpu.sm}, which has {', '.join(gpu.formats)}; {quantization or 'the model'} runs "
        f"by kind {kind} on SM {runs}"
    )


def _list_runtime_needs(kind: str, quantization: str | None, gpu: GpuRow) -> list[str]:
    needs = []
    if first := find_first_version(kind, gpu.sm):
        needs.append(f"SM {gpu.sm} from TensorRT-LLM {first} on")
    fallback = find_fallback(quantization, gpu.sm) if kind == "llmapi" else None
    if fallback is not None:
        needs.append(describe_fallback(str(quantization), fallback, gpu.sm))
    return needs


def _is_among(kind: str, gpu: GpuRow, targets: tuple[str, ...]) -> bool:
    """Tell whether a kind runs on a GPU: what the table does not have runs what its SM runs."""
    if gpu.name in load_table("gpus")["gpus"]:
        return gpu.name in targets
    rows = [find_gpu(name) for name in targets]
    if not gpu.is_listed:
        return kind == "llmapi" and bool(rows)
    return has_code(kind, gpu) and any(row.sm == gpu.sm for row in rows)
