"""Whether a model can become an engine of a kind, from tables alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from enginix.machine.gpu_table import find_gpu
from enginix.machine.kind_support import has_code
from enginix.model.family_rows import describe_formats, list_family_rows
from enginix.model.number_formats import find_fallback, read_algorithms, runs_on_gpu
from enginix.tables import load_table


@dataclass(frozen=True)
class ModelVerdict:
    """What the tables say of a model and a kind.

    Attributes:
        takes: None where no table tells.
        why: what stands against it, or what is not known.
        targets: names of gpus.json that run it; None for any machine.
    """

    takes: bool | None
    why: tuple[str, ...]
    targets: tuple[str, ...] | None


@cache
def list_kind_targets(kind: str) -> tuple[str, ...]:
    """Return the GPUs of gpus.json that the software of a kind has code for, sorted."""
    return tuple(sorted(name for name in load_table("gpus")["gpus"] if has_code(kind, find_gpu(name))))


def list_format_targets(kind: str, quantization: str | None, *, is_compiled: bool) -> tuple[str, ...]:
    """Return the GPUs that run a kind and execute a number format; all of the kind for an unknown format."""
    row, gpus = read_algorithms().get(quantization or "NO_QUANT"), load_table("gpus")["gpus"]

    def executes(gpu: Mapping[str, Any]) -> bool:
        if row is None or runs_on_gpu(row, gpu["sm"], gpu["formats"], is_compiled=is_compiled):
            return True
        return kind == "llmapi" and find_fallback(quantization, gpu["sm"]) is not None

    return tuple(name for name in list_kind_targets(kind) if executes(gpus[name]))


def explain_architecture(architecture: str | None, what: str) -> str:
    """Return why an architecture is not supported, or that the model names none."""
    return f"{architecture} {what}" if architecture else "the model names no architecture"


def explain_foreign_method(method: str | None) -> str | None:
    """Return why a ``quant_method`` that is not ModelOpt's is not converted; None for ModelOpt's."""
    if method in (None, "modelopt"):
        return None
    rows = load_table("number_formats")["methods"]
    return f"quantization method {method} is not converted: {rows.get(method, rows['*'])['why']}"


def list_conversion_obstacles(
    architecture: str | None, quantization: str | None, method: str | None, converters: Collection[str]
) -> list[str]:
    """Return why none of the converters makes a checkpoint of a model; empty where one does.

    ``enginix`` alone converts quantized models (enginix.checkpoint.external_converters).

    Args:
        converters: rows of converters.json.
    """
    table, own = load_table("converters"), load_table("architectures")["architectures"]
    family = list_family_rows().get(architecture or "")
    takers = [name for name in converters if architecture in table["converters"][name]["architectures"]]
    row, name = read_algorithms().get(quantization or "NO_QUANT"), quantization or "NO_QUANT"
    obstacles = []
    if not takers:
        refused = table["refused"].get(architecture)
        obstacles.append(
            f"no converter takes {architecture}: {refused}"
            if refused
            else explain_architecture(architecture, "is not converted")
        )
    if foreign := explain_foreign_method(method):
        obstacles.append(foreign)
    elif row is None or not row["convert"]:
        why = f": {row['why']}" if row else ""
        obstacles.append(f"format {name} is not converted{why}")
    elif (
        takers
        and name != "NO_QUANT"
        and ("enginix" not in takers or (family is not None and name not in family.get("formats", ())))
    ):
        formats = describe_formats(family or {})
        obstacles.append(f"converter {takers[0]} takes {architecture} {formats}, and this one is {name}")
    elif row["experts"] is False and "experts" in own.get(architecture, {}).get("mlp", ""):
        obstacles.append(f"{name} is for dense models, and {architecture} has experts")
    return obstacles
