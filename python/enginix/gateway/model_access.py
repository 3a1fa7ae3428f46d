"""Which models a key may use, and OpenAI's list of them."""

from __future__ import annotations

from typing import Any

from enginix.gateway.keys import Caller
from enginix.gateway.request import RequestRejected
from enginix.gateway.spec import GatewaySpec


def resolve_model(spec: GatewaySpec, name: Any, caller: Caller) -> str:
    """Return the model of a name or an alias that a caller may use.

    Raises:
        RequestRejected: the name is missing, unknown, or not for this caller.
    """
    if name is None:
        raise RequestRejected("model is missing", "model")
    if not isinstance(name, str):
        raise RequestRejected("model: not a text", "model")
    model = spec.resolve(name)
    allowed = caller.client.models if caller.client else ()
    if model is None or (allowed and model not in allowed):
        shown_name = name if len(name) <= 64 else f"{name[:64]}…"
        raise RequestRejected(
            f"model {shown_name!r} does not exist, or this key may not use it",
            "model",
            404,
            "model_not_found",
        )
    return model


def list_models(spec: GatewaySpec, caller: Caller, name: str) -> dict[str, Any]:
    """Answer ``GET /v1/models`` and ``GET /v1/models/NAME``."""
    if name:
        resolve_model(spec, name, caller)
        return _model_row(name)
    allowed = caller.client.models if caller.client else ()
    every = [*spec.models, *spec.aliases]
    names = [n for n in every if not allowed or spec.resolve(n) in allowed]
    return {"object": "list", "data": [_model_row(n) for n in names]}


def _model_row(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "enginix"}
