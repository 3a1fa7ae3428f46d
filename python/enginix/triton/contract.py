"""The tensors that clients and models agree on: NVIDIA's contract, and what the reference kind takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from enginix.tables import table

EXECUTOR = "tensorrt_llm"
ENSEMBLE = "ensemble"
# File in the server's private directory, and the request parameter that repeats its content: it opens the
# executor of kind ``reference`` to readiness.
EXECUTOR_KEY = "enginix_key"


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes:
        type: Triton's name without ``TYPE_``, for instance ``INT32``.
        dims: without the batch dimension; -1 is any.
        optional: a request may leave it out.
        ragged: requests of a batch may differ in shape.
        scalar: a row is one value without dimensions (``reshape { shape: [] }``).
    """

    name: str
    type: str
    dims: tuple[int, ...]
    optional: bool = False
    ragged: bool = False
    scalar: bool = False


@dataclass(frozen=True)
class Step:
    """One step of an ensemble: tensor of the model → tensor of the ensemble."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Model:
    """One model's interface.

    Attributes:
        parameters: every key that a ``config.pbtxt`` of it may carry.
        required: those it must carry.
        steps: of an ensemble; empty otherwise.
        source: where the contract was read.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: frozenset[str]
    required: frozenset[str] = frozenset()
    steps: tuple[Step, ...] = ()
    source: str = field(default="", compare=False)


@cache
def nvidia() -> dict[str, Model]:
    """NVIDIA's contract, whole: the last TensorRT-LLM line with an engine backend."""
    found = {}
    for name, raw in table("triton_contract")["models"].items():
        parameters = raw["parameters"]
        found[name] = Model(
            name=name,
            inputs=_tensors(raw["inputs"]),
            outputs=_tensors(raw["outputs"]),
            parameters=frozenset(parameters),
            required=frozenset(k for k, p in parameters.items() if p.get("required")),
            steps=tuple(Step(s["model"], s["inputs"], s["outputs"]) for s in raw.get("steps", [])),
            source=raw["source"],
        )
    return found


def tensorrt(datatypes: Mapping[str, str], *, chat: bool = True) -> dict[str, Model]:
    """NVIDIA's models with the data types that its templates leave open.

    Args:
        datatypes: template variable → type without ``TYPE_``.
        chat: with the inputs for messages (data/triton_chat.json).
    """

    def filled(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            replace(t, type=datatypes[t.type[2:-1]]) if t.type.startswith("${") else t for t in tensors
        )

    found = {
        name: replace(model, inputs=filled(model.inputs), outputs=filled(model.outputs))
        for name, model in nvidia().items()
    }
    return {name: _chatting(model, name) for name, model in found.items()} if chat else found


def _chatting(model: Model, key: str) -> Model:
    """A model with the inputs for messages, its text optional."""
    added = table("triton_chat")
    row = added["llmapi"] if key == "llmapi" else added["models"].get(key)
    if row is None:
        return model
    steps = row.get("steps", {})
    return replace(
        model,
        inputs=tuple(replace(t, optional=t.optional or t.name in row["optional"]) for t in model.inputs)
        + _tensors(row["inputs"]),
        parameters=model.parameters | frozenset(added["parameters"].get(key, ())),
        steps=tuple(replace(s, inputs={**s.inputs, **steps.get(s.model, {})}) for s in model.steps),
    )


@cache
def llmapi(*, chat: bool = True) -> dict[str, Model]:
    """The one model of NVIDIA's llmapi repository."""
    raw = table("triton_contract")["llmapi"]
    model = Model(
        name=EXECUTOR,
        inputs=_tensors(raw["inputs"]),
        outputs=_tensors(raw["outputs"]),
        parameters=frozenset(raw["parameters"]),
        source=raw["source"],
    )
    return {EXECUTOR: _chatting(model, "llmapi") if chat else model}


@cache
def reference() -> dict[str, Model]:
    """The models of kind ``reference``: the part of the contract that it declares, and its additions."""
    found = {}
    for name, row in table("triton_reference")["models"].items():
        whole = nvidia()[name]
        declared = Model(
            name=name,
            inputs=_chosen(whole.inputs, row["inputs"]) + _tensors(row["extraInputs"]),
            outputs=_chosen(whole.outputs, row["outputs"]) + _tensors(row["extraOutputs"]),
            parameters=frozenset(row["parameters"]) | frozenset(row["extraParameters"]),
            required=frozenset(row["parameters"]) & whole.required,
            source=whole.source,
        )
        found[name] = _chatting(declared, name)
    return found


def _tensors(rows: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            r["name"],
            r["type"],
            tuple(r["dims"]),
            r.get("optional", False),
            r.get("ragged", False),
            r.get("scalar", False),
        )
        for r in rows
    )


def _chosen(tensors: tuple[Tensor, ...], names: list[str]) -> tuple[Tensor, ...]:
    known = {t.name: t for t in tensors}
    return tuple(known[name] for name in names)
