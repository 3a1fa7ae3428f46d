"""Contracts of the models' tensors and parameters: NVIDIA's, and kind reference's part of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from enginix.tables import load_table

EXECUTOR = "tensorrt_llm"
ENSEMBLE = "ensemble"
# File in the server's private directory with a key. A request parameter with this key may use the executor of
# kind ``reference``; the readiness check sends it.
EXECUTOR_KEY = "enginix_key"
# Directory in the server's private directory: the processes of kind ``reference`` give signs of life there.
HEARTBEATS = "heartbeats"


@dataclass(frozen=True)
class TensorContract:
    """One input or output.

    Attributes:
        type: Triton's name without ``TYPE_``, for instance ``INT32``.
        dims: shape without the batch dimension; -1 is any size.
        optional: a request may omit it.
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
class EnsembleStep:
    """One step of an ensemble: tensor of the model → tensor of the ensemble."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelContract:
    """One model's interface.

    Attributes:
        parameters: every key that its ``config.pbtxt`` may have.
        required: keys that it must have.
        steps: steps of an ensemble; empty for other models.
        source: source of the contract.
    """

    name: str
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    parameters: frozenset[str]
    required: frozenset[str] = frozenset()
    steps: tuple[EnsembleStep, ...] = ()
    source: str = field(default="", compare=False)


@cache
def load_nvidia_contract() -> dict[str, ModelContract]:
    """Load NVIDIA's whole contract, of the last TensorRT-LLM line with an engine backend."""
    models = {}
    for name, raw in load_table("triton_contract")["models"].items():
        parameters = raw["parameters"]
        models[name] = ModelContract(
            name=name,
            inputs=_parse_tensors(raw["inputs"]),
            outputs=_parse_tensors(raw["outputs"]),
            parameters=frozenset(parameters),
            required=frozenset(k for k, p in parameters.items() if p.get("required")),
            steps=tuple(EnsembleStep(s["model"], s["inputs"], s["outputs"]) for s in raw.get("steps", [])),
            source=raw["source"],
        )
    return models


def build_tensorrt_contract(datatypes: Mapping[str, str], *, chat: bool = True) -> dict[str, ModelContract]:
    """Return the contract of NVIDIA's models, with the data types that its templates leave open.

    Args:
        datatypes: template variable → type without ``TYPE_``.
        chat: add the inputs for messages (data/triton/triton_chat.json).
    """

    def filled(tensors: tuple[TensorContract, ...]) -> tuple[TensorContract, ...]:
        return tuple(
            replace(t, type=datatypes[t.type[2:-1]]) if t.type.startswith("${") else t for t in tensors
        )

    models = {
        name: replace(model, inputs=filled(model.inputs), outputs=filled(model.outputs))
        for name, model in load_nvidia_contract().items()
    }
    return {name: _add_chat_inputs(model, name) for name, model in models.items()} if chat else models


def _add_chat_inputs(model: ModelContract, key: str) -> ModelContract:
    """Return a model with the inputs for messages added, and its text optional."""
    added = load_table("triton_chat")
    row = added["llmapi"] if key == "llmapi" else added["models"].get(key)
    if row is None:
        return model
    steps = row.get("steps", {})
    return replace(
        model,
        inputs=tuple(replace(t, optional=t.optional or t.name in row["optional"]) for t in model.inputs)
        + _parse_tensors(row["inputs"]),
        parameters=model.parameters | frozenset(added["parameters"].get(key, ())),
        steps=tuple(replace(s, inputs={**s.inputs, **steps.get(s.model, {})}) for s in model.steps),
    )


@cache
def load_llmapi_contract(*, chat: bool = True) -> dict[str, ModelContract]:
    """Load the contract of the one model of NVIDIA's llmapi repository."""
    raw = load_table("triton_contract")["llmapi"]
    model = ModelContract(
        name=EXECUTOR,
        inputs=_parse_tensors(raw["inputs"]),
        outputs=_parse_tensors(raw["outputs"]),
        parameters=frozenset(raw["parameters"]),
        source=raw["source"],
    )
    return {EXECUTOR: _add_chat_inputs(model, "llmapi") if chat else model}


@cache
def load_reference_contract() -> dict[str, ModelContract]:
    """Load the contract of kind ``reference``'s models: its part of NVIDIA's contract, and its additions."""
    models = {}
    for name, row in load_table("triton_reference")["models"].items():
        whole = load_nvidia_contract()[name]
        declared = ModelContract(
            name=name,
            inputs=_select_tensors(whole.inputs, row["inputs"]) + _parse_tensors(row["extraInputs"]),
            outputs=_select_tensors(whole.outputs, row["outputs"]) + _parse_tensors(row["extraOutputs"]),
            parameters=frozenset(row["parameters"]) | frozenset(row["extraParameters"]),
            required=frozenset(row["parameters"]) & whole.required,
            source=whole.source,
        )
        models[name] = _add_chat_inputs(declared, name)
    return models


def _parse_tensors(rows: list[dict[str, Any]]) -> tuple[TensorContract, ...]:
    return tuple(TensorContract(**{**row, "dims": tuple(row["dims"])}) for row in rows)


def _select_tensors(tensors: tuple[TensorContract, ...], names: list[str]) -> tuple[TensorContract, ...]:
    known = {t.name: t for t in tensors}
    return tuple(known[name] for name in names)
