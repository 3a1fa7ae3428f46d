"""Answers of LiteLLM as OpenAI's clients expect them, where the two differ.

- An error's text has LiteLLM's names around what the server said; OpenAI's ``param`` is empty.
- Chunks have usages that were not asked for; OpenAI's has one where it was, in a last chunk without choices.
- Texts of a completion's last chunks are null; OpenAI's are texts.
- Ids of completions are those of chats; models are named as the server behind names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from enginix.openai.events import DONE, EventParser
from enginix.openai.request import PARAMETERS

_PREFIX = re.compile(r"^(?:litellm\.\w+: |\w+Error: (?=\w+Exception - )|\w+Exception - )+")
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
    """Server-sent events of one answer, cleaned one by one.

    Args:
        identity: the answer's id; ``None`` keeps the server's.
        model: the name that the client asked for; ``None`` keeps what LiteLLM says.
        include_usage: send the usage as a last chunk of its own, as the request asked. LiteLLM puts usages
            into chunks whether or not one was asked for.
    """

    def __init__(
        self, identity: str | None = None, model: str | None = None, *, include_usage: bool = False
    ) -> None:
        self._identity, self._model, self._include_usage = identity, model, include_usage
        self._parser = EventParser()
        self._last: dict[str, Any] = {}
        self.usage: dict[str, Any] | None = None
        self.failed = ""

    def feed(self, raw: bytes, *, more: bool) -> bytes:
        """Return what to send for these bytes; an event that is not whole yet is held back."""
        events = self._parser.feed(raw)
        if not more:
            events += self._parser.close()
        return b"".join(frame(event) for data in events for event in self._cleaned(data))

    def _cleaned(self, data: str) -> list[dict[str, Any] | str]:
        if data.strip() == DONE:
            return [*self._usage_chunk(), DONE]
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            return []
        if isinstance(event.get("error"), dict):
            status = str(event["error"].get("code"))
            error = _error(event["error"], int(status) if status.isdigit() else 500)
            self.failed = error["message"]
            return [{"error": error}]
        return self._cleaned_chunk(event)

    def _cleaned_chunk(self, chunk: dict[str, Any]) -> list[dict[str, Any] | str]:
        usage = chunk.pop("usage", None)
        if isinstance(usage, dict) and any(usage.values()):
            self.usage = usage
        if self._identity is not None:
            chunk["id"] = self._identity
        if self._model is not None:
            chunk["model"] = self._model
        self._last = chunk
        choices = [c for c in chunk.get("choices") or () if isinstance(c, dict)]
        if usage is not None and not any(_says_something(c) for c in choices):
            # The usage's own chunk; LiteLLM's has a choice without content, OpenAI's none.
            return []
        if chunk.get("object") == "text_completion":
            for choice in choices:
                choice["text"] = choice.get("text") or ""
        return [chunk]

    def _usage_chunk(self) -> list[dict[str, Any] | str]:
        if not self._include_usage or self.usage is None or self.failed:
            return []
        return [{**self._last, "choices": [], "usage": self.usage}]


def frame(event: dict[str, Any] | str) -> bytes:
    """Return an event as bytes."""
    return b"data: " + (event.encode() if isinstance(event, str) else _dump(event)) + b"\n\n"


def _says_something(choice: Mapping[str, Any]) -> bool:
    """Tell whether a choice of a chunk has content of any form, or ends the answer."""
    delta = choice.get("delta")
    contents = delta if isinstance(delta, dict) else {"text": choice.get("text")}
    return bool(choice.get("finish_reason")) or any(contents.values())


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
