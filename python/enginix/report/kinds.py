"""Compare all kinds of engines of one model: whether they support it, their size and their targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginix.errors import ModelError, UsageError
from enginix.hub import lock
from enginix.hub.model_metadata import FILES, extract_model_metadata
from enginix.report.model_origin import accept_short_text
from enginix.tables import load_table

KINDS = ("tensorrt", "llmapi", "edgellm", "reference")
FLOAT16_DIVISORS = {"float32": 2}  # divisor of the weights' size in float16; other types keep their size


@dataclass(frozen=True)
class ComparedModel:
    """The properties of a model that a comparison of kinds uses; ``weights`` in bytes on disk."""

    name: str
    architecture: str | None
    quantization: str | None
    dtype: str | None
    weights: int


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

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_compared_model(where: Path) -> ComparedModel:
    """Read a model from its directory or its lock.

    Raises:
        ModelError: the path is neither.
    """
    if where.is_dir():
        if not (where / FILES[0]).is_file():
            raise ModelError(f"no {FILES[0]}", where=str(where), fix="pass a model's directory, or its lock")
        facts = extract_model_metadata(
            {n: (where / n).read_bytes() for n in FILES if (where / n).is_file()}, str(where)
        )
        sizes = {p.name: p.stat().st_size for p in where.iterdir() if p.is_file()}
        name = where.resolve().name
    elif where.is_file():
        pinned = lock.read_lock(where)
        if pinned.type != "model":
            raise ModelError("is the lock of a dataset", where=str(where), fix="pass a model's lock")
        facts, name = dict(pinned.model), pinned.repo
        sizes = {f.path: f.size for f in pinned.files}
    else:
        raise ModelError(
            "no such file or directory", where=str(where), fix="pass a model's directory, or its lock"
        )
    weights = sum(size for path, size in sizes.items() if path.endswith(".safetensors"))
    return ComparedModel(
        name=name,
        architecture=accept_short_text(facts.get("architecture")),
        quantization=accept_short_text(facts.get("quantization")),
        dtype=accept_short_text(facts.get("dtype")),
        weights=weights,
    )


def _list_targets(
    least: int, refused: list[int] | None = None, among: set[int] | None = None
) -> tuple[str, ...]:
    def runs(sm: int) -> bool:
        inside = refused is not None and refused[0] <= sm < refused[1]
        return sm >= least and not inside and (among is None or sm in among)

    return tuple(sorted(name for name, row in load_table("gpus")["gpus"].items() if runs(row["sm"])))


def _explain_architecture(model: ComparedModel, what: str) -> str:
    """Return why an architecture is not supported, or that the model names none."""
    return f"{model.architecture} {what}" if model.architecture else "the model names no architecture"


def _judge_tensorrt(model: ComparedModel) -> tuple[bool | None, list[str], tuple[str, ...]]:
    support = load_table("quantization_support")
    why = []
    if model.architecture not in support["architectures"]["engine"]:
        why.append(_explain_architecture(model, "has no engine class"))
    row = support["algorithms"].get(model.quantization or "NO_QUANT")
    if row is None or not row["engine"]:
        return False, [*why, f"no engine for format {model.quantization}"], ()
    least = max(support["engineSm"]["least"], row["minSm"] or 0)
    return not why, why, () if why else _list_targets(least, row["refusedSm"])


def _judge_llmapi(model: ComparedModel) -> tuple[bool | None, list[str], tuple[str, ...]]:
    # As in evaluation (nix/check/target.nix, computes): nothing is compiled ahead, so only a number format
    # that the GPU lacks rules a target out.
    row = load_table("quantization_support")["algorithms"].get(model.quantization or "NO_QUANT") or {}
    needs = set(row.get("needs", ()))
    able = (name for name, gpu in load_table("gpus")["gpus"].items() if needs <= set(gpu["formats"]))
    return None, ["the models that the runtime supports are not known"], tuple(sorted(able))


def _judge_edgellm(model: ComparedModel) -> tuple[bool | None, list[str], tuple[str, ...]]:
    edge = load_table("edgellm")
    why = []
    if model.architecture not in edge["architectures"]:
        why.append(_explain_architecture(model, "is not supported for Edge-LLM export"))
    if model.quantization is not None and model.quantization not in edge["formats"]:
        why.append(f"format {model.quantization} is not supported for Edge-LLM export")
    if why:
        return False, why, ()
    least = edge["formats"][model.quantization]["minSm"] if model.quantization else 0
    return True, [], _list_targets(least, among={p["sm"] for p in edge["payloads"]})


def _judge_reference(model: ComparedModel) -> tuple[bool | None, list[str], None]:
    why = []
    if model.architecture not in load_table("architectures")["architectures"]:
        why.append(_explain_architecture(model, "is not converted"))
    row = load_table("quantization")["algorithms"].get(model.quantization or "NO_QUANT")
    if row is None or not row["convert"]:
        why.append(f"format {model.quantization} is not converted")
    return not why, why, None


def compare_kinds(model: ComparedModel, target: str | None = None) -> tuple[KindRow, ...]:
    """Return one row for each kind.

    Args:
        target: a GPU of gpus.json; kinds that it does not run give it as a reason.

    Raises:
        UsageError: unknown target.
    """
    gpus = load_table("gpus")["gpus"]
    if target is not None and target not in gpus:
        raise UsageError(f"unknown target {target!r}", fix=f"known: {', '.join(sorted(gpus))}")
    judges = {
        "tensorrt": _judge_tensorrt,
        "llmapi": _judge_llmapi,
        "edgellm": _judge_edgellm,
        "reference": _judge_reference,
    }
    rows = []
    for kind in KINDS:
        takes, why, targets = judges[kind](model)
        if takes is not False and target is not None and targets is not None and target not in targets:
            takes = False
            sms = sorted({gpus[t]["sm"] for t in targets})
            have = ", ".join(gpus[target]["formats"])
            runs = ", ".join(map(str, sms))
            why = [f"{target} is SM {gpus[target]['sm']}, which has {have}; it runs on SM {runs}"]
        size = (
            model.weights // FLOAT16_DIVISORS.get(model.dtype or "", 1) if kind != "llmapi" else model.weights
        )
        rows.append(KindRow(kind, takes, tuple(why), size, targets, load_table("kinds")["kinds"][kind]))
    return tuple(rows)
