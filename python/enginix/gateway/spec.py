"""The description of a gateway: models, servers behind them, clients, limits, routing; no secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from enginix.errors import EnginixError
from enginix.files import refuse_damage
from enginix.letter_case import to_camel_case
from enginix.wording import list_known

VERSION = 1
KINDS = ("triton", "openai")
# Not least-busy: LiteLLM does not count down requests whose clients have vanished.
STRATEGIES = ("simple-shuffle", "latency-based-routing")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_T = TypeVar("_T")


class GatewaySpecError(EnginixError):
    """A gateway's description is invalid."""

    kind = "gateway"


@dataclass(frozen=True)
class BackendServer:
    """One server behind the gateway.

    Attributes:
        kind: ``triton`` (a repository of ``enginix triton-repo``) or ``openai`` (trtllm-serve, Edge-LLM).
        url: ``http://host:port``; for openai with its ``/v1``.
        model: the model's name at the server: Triton's model, or the value of the request's ``model``.
        key_file: file with the key that the server requires.
    """

    kind: str
    url: str
    model: str
    key_file: str | None = None


@dataclass(frozen=True)
class GatewayLimits:
    """Limits of the whole gateway.

    Attributes:
        max_parallel_requests: requests at once; more are refused with 429; 0 for no limit.
        max_body_bytes: largest size of a request.
        default_max_tokens: limit for a Triton server's requests without one; ``None`` is all that fits.
        silence_seconds: seconds without data after which a server counts as failed.
        body_seconds: seconds for a client to send its request.
    """

    max_parallel_requests: int = 0
    max_body_bytes: int = 4 * 2**20
    default_max_tokens: int | None = None
    silence_seconds: int = 600
    body_seconds: int = 30


@dataclass(frozen=True)
class GatewayClient:
    """One client.

    Attributes:
        key_file: file with the client's key.
        models: models that it may use; empty for all.
        requests_per_minute, tokens_per_minute, parallel_requests: 0 for no limit.
    """

    key_file: str
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    parallel_requests: int = 0


@dataclass(frozen=True)
class GatewaySpec:
    """A gateway.

    Attributes:
        models: name that clients use → servers that answer, any of them.
        aliases: further names → a name of models.
        fallbacks: name → names to try, in order, if no server of the first answers; never within an answer.
        key_file: the operator's key: all models, no limits.
        metrics_key_file: a key that reads ``/metrics`` and nothing else.
    """

    name: str
    models: Mapping[str, tuple[BackendServer, ...]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    strategy: str = "simple-shuffle"
    key_file: str | None = None
    metrics_key_file: str | None = None
    clients: Mapping[str, GatewayClient] = field(default_factory=dict)
    limits: GatewayLimits = GatewayLimits()

    def resolve(self, name: str) -> str | None:
        """Return the model that a request's ``model`` refers to; None if it is unknown."""
        name = self.aliases.get(name, name)
        return name if name in self.models else None

    def is_triton(self, model: str) -> bool:
        """Tell whether a Triton server may answer, also as a fallback."""
        names = (model, *self.fallbacks.get(model, ()))
        return any(s.kind == "triton" for n in names for s in self.models[n])


def read_gateway_spec(path: Path) -> GatewaySpec:
    """Read a description.

    Raises:
        GatewaySpecError: the file is unreadable, or the description is invalid; names the key.
    """
    with refuse_damage(GatewaySpecError, path, "pass a description as enginix gateway --help shows it"):
        description = json.loads(path.read_text("utf-8"))
    return parse_gateway_spec(description, str(path))


def parse_gateway_spec(description: Any, where: str) -> GatewaySpec:
    """Check a parsed description.

    Raises:
        GatewaySpecError: invalid; names the key.
    """
    top = _copy_object(description, where)
    if (version := top.pop("version", None)) != VERSION:
        fix = f'write "version": {VERSION}; enginix gateway --help shows a whole description'
        raise GatewaySpecError(f"version is {version!r}, not {VERSION}", where=where, fix=fix)
    models = {}
    for name, rows in _copy_object(top.pop("models", None), f"{where}: models").items():
        model_where = f"{where}: models.{name}"
        _check_name(name, model_where)
        if not isinstance(rows, list) or not rows:
            raise GatewaySpecError("not a list of at least one server", where=model_where)
        models[name] = tuple(_parse_server(row, f"{model_where}[{i}]") for i, row in enumerate(rows))
    if not models:
        raise GatewaySpecError("no models are configured", where=f"{where}: models")
    clients = {
        name: _parse_client(row, f"{where}: clients.{name}", models)
        for name, row in _copy_object(top.pop("clients", {}), f"{where}: clients").items()
    }
    aliases = _copy_object(top.pop("aliases", {}), f"{where}: aliases")
    for name, target in aliases.items():
        _check_name(name, f"{where}: aliases.{name}")
        if name in models:
            raise GatewaySpecError(
                "is a model already; choose another alias", where=f"{where}: aliases.{name}"
            )
        _check_model(target, models, f"{where}: aliases.{name}")
    fallbacks = {}
    for name, fallback_names in _copy_object(top.pop("fallbacks", {}), f"{where}: fallbacks").items():
        _check_model(name, models, f"{where}: fallbacks.{name}")
        fallbacks[name] = _parse_model_names(fallback_names, models, f"{where}: fallbacks.{name}")
    limits = _fill_dataclass(
        GatewayLimits, _copy_object(top.pop("limits", {}), f"{where}: limits"), f"{where}: limits"
    )
    for row in fields(GatewayLimits):
        least = 0 if row.name == "max_parallel_requests" else 1
        if (value := getattr(limits, row.name)) is not None and value < least:
            raise GatewaySpecError(
                f"is not at least {least}", where=f"{where}: limits.{to_camel_case(row.name)}"
            )
    spec = _fill_dataclass(
        GatewaySpec,
        {
            **top,
            "models": models,
            "clients": clients,
            "aliases": aliases,
            "fallbacks": fallbacks,
            "limits": limits,
        },
        where,
    )
    if spec.metrics_key_file is not None and spec.key_file is None and not spec.clients:
        raise GatewaySpecError(
            "is set, but no key lets requests in; set keyFile or clients, too",
            where=f"{where}: metricsKeyFile",
        )
    if spec.strategy not in STRATEGIES:
        raise GatewaySpecError(
            f"{spec.strategy!r} is not supported",
            where=f"{where}: strategy",
            fix=list_known(spec.strategy, STRATEGIES),
        )
    return spec


def _parse_server(row: Any, where: str) -> BackendServer:
    server = _fill_dataclass(BackendServer, _copy_object(row, where), where)
    if server.kind not in KINDS:
        raise GatewaySpecError(
            f"{server.kind!r} is not supported", where=f"{where}.kind", fix=list_known(server.kind, KINDS)
        )
    _check_name(server.model, f"{where}.model")
    try:
        parts = urlsplit(server.url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise GatewaySpecError(f"{server.url!r} is not http://host:port", where=f"{where}.url")
    if port == 0:
        raise GatewaySpecError("port must not be 0", where=f"{where}.url")
    return server


def _parse_client(row: Any, where: str, models: Mapping[str, Any]) -> GatewayClient:
    settings = _copy_object(row, where)
    settings["models"] = _parse_model_names(settings.get("models", []), models, f"{where}.models")
    client = _fill_dataclass(GatewayClient, settings, where)
    for name in ("requests_per_minute", "tokens_per_minute", "parallel_requests"):
        if getattr(client, name) < 0:
            raise GatewaySpecError("is below 0", where=f"{where}.{to_camel_case(name)}")
    return client


def _fill_dataclass(dataclass_type: type[_T], settings: dict[str, Any], where: str) -> _T:
    """Return a dataclass from an object with its fields as camelCase keys; types are checked."""
    values = {}
    known = {to_camel_case(f.name): f for f in fields(dataclass_type)}  # type: ignore[arg-type]
    for key, value in settings.items():
        if key not in known:
            raise GatewaySpecError(f"{key}: no such key", where=where, fix=list_known(key, known))
        type_name = str(known[key].type)
        checks = {"str": str, "int": int, "str | None": str | None, "int | None": int | None}
        if type_name in checks and (not isinstance(value, checks[type_name]) or isinstance(value, bool)):
            raise GatewaySpecError(f"{key} is not of type {type_name}", where=where)
        values[known[key].name] = value
    try:
        return dataclass_type(**values)
    except TypeError as e:
        missing = re.findall(r"'(\w+)'", str(e))
        raise GatewaySpecError(f"{', '.join(map(to_camel_case, missing))} is missing", where=where) from e


def _copy_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GatewaySpecError("not an object", where=where)
    return dict(value)


def _parse_model_names(names: Any, models: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if not isinstance(names, list | tuple):
        raise GatewaySpecError("not a list", where=where)
    for name in names:
        _check_model(name, models, where)
    return tuple(names)


def _check_model(name: Any, models: Mapping[str, Any], where: str) -> None:
    if not isinstance(name, str) or name not in models:
        raise GatewaySpecError(f"{name!r} is not a model", where=where, fix=list_known(str(name), models))


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise GatewaySpecError(
            f"{name!r} is not a valid name: use letters, digits and . _ : / -, at most 128 characters",
            where=where,
        )
