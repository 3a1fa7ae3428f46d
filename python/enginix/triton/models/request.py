"""Read a Triton request's tensors, with errors that name the tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Texts of one input: each stop word is looked for at every token, in the thread that serves all requests.
MOST_TEXTS = 1024


class RequestError(ValueError):
    """A request that cannot be served as it is; the message is for the client."""


class Inputs:
    """The named inputs of one request.

    Args:
        request: request of the Python backend.
        names: name asked for → the request's name of the input, where they differ.
    """

    def __init__(self, request: Any, names: Mapping[str, str] | None = None) -> None:
        self._request, self._names = request, names or {}
        # The backend's own helper fetches all of them again for each name.
        self._tensors = {tensor.name(): tensor for tensor in request.inputs()}
        # The backend decodes a tensor of strings again at each access.
        self._arrays: dict[str, NDArray[Any]] = {}

    def called(self, name: str) -> str:
        """Return the client's name of an input."""
        return self._names.get(name, name)

    def parameters(self) -> dict[str, Any]:
        """Return the request's parameters, which are not tensors."""
        parameters = json.loads(self._request.parameters() or "{}")
        return parameters if isinstance(parameters, dict) else {}

    def array(self, name: str) -> NDArray[Any] | None:
        """Return the tensor as NumPy array with its batch dimension; ``None`` if the request lacks it.

        Raises:
            RequestError: the tensor has more than one row.
        """
        called = self.called(name)
        tensor = self._tensors.get(called)
        if tensor is None:
            return None
        value = self._arrays.get(called)
        if value is None:
            value = self._arrays[called] = tensor.as_numpy()
        if value.ndim > 0 and value.shape[0] != 1:
            raise RequestError(
                f"{called}: {value.shape[0]} rows; send one prompt a request "
                "(requests are batched as they run)"
            )
        return value

    def scalar(self, name: str) -> Any:
        """Return the only element as a Python value; ``None`` if the request lacks the tensor.

        Raises:
            RequestError: the tensor does not have exactly one element, or a float is not finite.
        """
        value = self.array(name)
        if value is None:
            return None
        if value.size != 1:
            raise RequestError(f"{self.called(name)}: {value.size} values where one is expected")
        item = value.reshape(-1)[0]
        element = item.item() if isinstance(item, np.generic) else item
        if isinstance(element, float) and not math.isfinite(element):
            raise RequestError(f"{self.called(name)}: {element} is not a number to work with")
        return element

    def text(self, name: str) -> str | None:
        """Return the only string.

        Raises:
            RequestError: the tensor does not have exactly one string, or it is not UTF-8.
        """
        value = self.scalar(name)
        return None if value is None else _decode_utf8(name, value)

    def texts(self, name: str) -> list[str]:
        """Return all strings; an absent tensor and empty strings give an empty list.

        Raises:
            RequestError: there are too many, or one is not UTF-8.
        """
        value = self.array(name)
        if value is None:
            return []
        if value.size > MOST_TEXTS:
            raise RequestError(f"{self.called(name)}: {value.size} texts; at most {MOST_TEXTS} are taken")
        return [s for s in (_decode_utf8(name, v) for v in value.reshape(-1)) if s]


def _decode_utf8(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as e:
        raise RequestError(f"{name}: not UTF-8 at byte {e.start}") from e


def read_parameter(config: Any, key: str) -> str | None:
    """Read a string parameter of a parsed ``config.pbtxt``; ``None`` if it is absent or empty."""
    entry = config.get("parameters", {}).get(key)
    return (entry or {}).get("string_value") or None


def require_parameter(config: Any, key: str) -> str:
    """Return a parameter as :func:`read_parameter` does, for a key that the repository always writes.

    Raises:
        ValueError: absent; Triton shows the message when the model fails to load.
    """
    value = read_parameter(config, key)
    if value is None:
        raise ValueError(f"parameter {key} is missing from config.pbtxt; build the repository again")
    return value


def read_boolean(config: Any, key: str, default: bool) -> bool:
    """Read a boolean parameter, in the spellings of TensorRT-LLM's backend."""
    value = read_parameter(config, key)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise ValueError(f"parameter {key} is {value!r}, not true or false")
    return value == "true"


def read_integers(config: Any, key: str) -> list[int]:
    """Read integers joined by commas; empty if the parameter is absent."""
    value = read_parameter(config, key)
    return [int(v) for v in value.split(",")] if value else []


def read_check_period(config: Any) -> float:
    """Read the seconds between two checks whether the clients are still connected."""
    return int(read_parameter(config, "cancellation_check_period_ms") or 100) / 1000
