"""Answers of LiteLLM as OpenAI's clients expect them, where the two differ.

- An error's text has LiteLLM's names around what the server said; OpenAI's ``param`` is empty.
- The chunk with the usage has a choice without content; OpenAI's has no choices.
- Texts of a completion's last chunks are null; OpenAI's are texts.
"""

from __future__ import annotations

import json
import re
from typing import Any

from enginix.openai.request import PARAMETERS

_PREFIX = re.compile(r"^(?:litellm\.\w+: |\w+Exception - )+")
_SUFFIX = re.compile(r"\s*LiteLLM: model group .*$", re.DOTALL)
# What LiteLLM says where every server of a model has just failed.
NONE_LEFT = b"No deployments available"
_NAMED = re.compile(r"^(\w+)(?:\[\d+\][\w.\[\]]*)?: ")


def error(raw: bytes, status: int) -> bytes:
    """An error's body; what is none is left as it is."""
    try:
        found = json.loads(raw)
        row = found["error"]
        row["message"] = str(row["message"])
    except (ValueError, KeyError, TypeError):
        return raw
    return _dump({"error": _error(row, status)})


class Events:
    """Server-sent events of one answer, cleaned one by one."""

    def __init__(self) -> None:
        self._rest = b""
        self.failed = ""

    def feed(self, raw: bytes, *, more: bool) -> bytes:
        """What to send for these bytes; an event that is not whole yet is held back."""
        *whole, self._rest = (self._rest + raw).split(b"\n\n")
        out = b"".join(self._event(e) + b"\n\n" for e in whole)
        if not more:
            out, self._rest = out + self._rest, b""
        return out

    def _event(self, event: bytes) -> bytes:
        if not event.lstrip().startswith(b"data: {"):
            return event
        try:
            found = json.loads(event.lstrip()[6:])
        except ValueError:
            return event
        if "error" in found and isinstance(found["error"], dict):
            status = str(found["error"].get("code"))
            found = {"error": _error(found["error"], int(status) if status.isdigit() else 500)}
            self.failed = found["error"]["message"]
        elif found.get("usage"):
            found["choices"] = []
        if found.get("object") == "text_completion":
            for choice in found["choices"]:
                choice["text"] = choice.get("text") or ""
        return b"data: " + _dump(found)


def _error(row: dict[str, Any], status: int) -> dict[str, Any]:
    message = _SUFFIX.sub("", _PREFIX.sub("", str(row.get("message") or "")))
    if status == 503 and NONE_LEFT.decode() in message:
        message = "none of the model's servers can be reached"
    named = _NAMED.match(message)
    param = row.get("param") or (named[1] if named and named[1] in PARAMETERS else None)
    kind = (
        "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    )
    # LiteLLM's code is the status once more; OpenAI's are words.
    code = row.get("code")
    if code is None or str(code).isdigit():
        code = "rate_limit_exceeded" if status == 429 else None
    return {"message": message, "type": kind, "param": param, "code": code}


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
