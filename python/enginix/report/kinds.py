"""All kinds of engines of one model beside each other: what each takes, needs and runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginix.errors import ModelError, UsageError
from enginix.hub import lock
from enginix.hub.model_metadata import FILES, extract_model_metadata
from enginix.model.number_formats import read_algorithms, read_edgellm_formats, supports_sm
from enginix.report.model_origin import accept_short_text
from enginix.tables import load_table

KINDS = ("tensorrt", "llmapi", "edgellm", "reference")
FLOAT16_DIVISORS = {"float32": 2}  # what float16 divides the weights by; other types keep their size


@dataclass(frozen=True)
class ComparedModel:
    """What a comparison needs to know; ``weights`` in bytes on disk."""

    name: str
    architecture: str | None
    quantization: str | None
    dtype: str | None
    weights: int


@dataclass(frozen=True)
class KindRow:
    """One kind of one model.

    Attributes:
        takes: whether the model can become this kind; None where no table tells.
        why: what stands against it, or what is not known.
        size: bytes on disk of what is served, weights included; an estimate.
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
    """A model from its directory or its lock.

    Raises:
        ModelError: neither.
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


def _list_targets(runs: Callable[[int], bool]) -> tuple[str, ...]:
    return tuple(sorted(name for name, row in load_table("gpus")["gpus"].items() if runs(row["sm"])))


def _explain_architecture(model: ComparedModel, what: str) -> str:
    """Why an architecture is not taken, or that the model names none."""
    return f"{model.architecture} {what}" if model.architecture else "the model names no architecture"


def _judge_tensorrt(model: ComparedModel) -> tuple[bool | None, list[str], tuple[str, ...]]:
    support = load_table("engine_support")
    why = []
    if model.architecture not in support["architectures"]["engine"]:
        why.append(_explain_architecture(model, "has no engine class"))
    row = read_algorithms().get(model.quantization or "NO_QUANT")
    if row is None or not row["engine"]:
        return False, [*why, f"no engine for format {model.quantization}"], ()
    least = support["engineSm"]["least"]
    return not why, why, () if why else _list_targets(lambda sm: sm >= least and supports_sm(row, sm))


def _judge_llmapi(model: ComparedModel) -> tuple[bool | None, list[str], tuple[str, ...]]:
    # As evaluation has it (nix/check/target.nix, computes): nothing is compiled ahead, so that only a number
    # format which the GPU lacks stands against it.
    row = read_algorithms().get(model.quantization or "NO_QUANT") or {}
    needs = set(row.get("needs", ()))
    able = (name for name, gpu in load_table("gpus")["gpus"].items() if needs <= set(gpu["formats"]))
    return None, ["which models the runtime takes is not in a table"], tuple(sorted(able))


def _judge_edgellm(model: ComparedModel) -> tuple[bool | None, list[str], tuple[str, ...]]:
    edge, formats = load_table("edgellm"), read_edgellm_formats()
    why = []
    if model.architecture not in edge["architectures"]:
        why.append(_explain_architecture(model, "is none whose export is checked"))
    if model.quantization is not None and model.quantization not in formats:
        why.append(f"format {model.quantization} is none whose export is checked")
    if why:
        return False, why, ()
    least = formats[model.quantization]["minSm"] if model.quantization else 0
    sms = {p["sm"] for p in edge["payloads"]}
    return True, [], _list_targets(lambda sm: sm >= least and sm in sms)


def _judge_reference(model: ComparedModel) -> tuple[bool | None, list[str], None]:
    why = []
    if model.architecture not in load_table("architectures")["architectures"]:
        why.append(_explain_architecture(model, "is not converted"))
    row = read_algorithms().get(model.quantization or "NO_QUANT")
    if row is None or not row["convert"]:
        why.append(f"format {model.quantization} is not converted")
    return not why, why, None


def compare_kinds(model: ComparedModel, target: str | None = None) -> tuple[KindRow, ...]:
    """One row a kind.

    Args:
        target: a GPU of gpus.json; kinds that it does not run say so.

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
