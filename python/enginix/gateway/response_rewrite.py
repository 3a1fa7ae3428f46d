"""Rewrite LiteLLM's answers to the form that OpenAI's clients expect.

Answers of a server with OpenAI's interface are the server's own, with the client's name of the model
(:mod:`enginix.gateway.recorded_answer`). LiteLLM's answers differ so:

- An error's text has LiteLLM's names around the server's message, and ``param`` is empty.
- Chunks have usages that were not requested; OpenAI sends a requested usage in a last chunk without choices.
- Texts of a completion's last chunks are null; OpenAI's are texts.
- Fields that LiteLLM does not know are in ``provider_specific_fields``, which is there even if empty.
- Ids of completions are those of chats; models have the names of the server behind.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from enginix.gateway.client_errors import CONTEXT_CODE
from enginix.gateway.events import DONE, EventParser
from enginix.gateway.recorded_answer import RecordedAnswer
from enginix.gateway.request import PARAMETERS, RequestRejected

_PREFIX = re.compile(r"^(?:litellm\.\w+: |\w+Error: (?=[\w-]+Exception - )|[\w-]+Exception - )+")
_SUFFIX = re.compile(r"\s*(?:LiteLLM: model group | Original exception: \w+: litellm\.).*$", re.DOTALL)
# The openai client's message, in which the answer is Python's text of a dict.
_QUOTED = re.compile(r"^Error code: \d{3} - (\{.*\})$", re.DOTALL)
UNFINISHED = "the model's server broke the answer off: its stream ends without a finish_reason"
# LiteLLM's message when every server of a model has just failed.
_NONE_LEFT = "No deployments available"
_NAMED = re.compile(r"^(\w+)(?:\[\d+\][\w.\[\]]*)?: ")


def rewrite_refusal(raw: bytes, status: int) -> RequestRejected:
    """Return LiteLLM's error for the client, with the correct status.

    Args:
        raw: the body of an answer.
        status: the answer's status, 400 or above.
    """
    try:
        row = json.loads(raw)["error"]
        row["message"] = str(row["message"])
    except (ValueError, KeyError, TypeError):
        return RequestRejected("the model's server failed", None, status if status >= 500 else 502)
    # LiteLLM answers 429 if a model has no server that it would ask.
    if status == 429 and _NONE_LEFT in row["message"]:
        return RequestRejected("none of the model's servers can be reached", None, 503)
    # The client is not at fault: key and model name are the gateway's.
    if status in (401, 403):
        return RequestRejected("the model's server refuses the gateway's key", None, 502)
    if status == 404:
        return RequestRejected("the model's server does not know the model", None, 502)
    error = _rewrite_error(row, status)
    code = error["code"]
    if "maximum context length" in error["message"]:
        code = CONTEXT_CODE
    return RequestRejected(error["message"], error["param"], status, code)


def rewrite_answer(
    raw: bytes, identity: str | None, model: str, recorded: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return an answer that is not streamed, with the client's name of the model.

    Args:
        raw: LiteLLM's answer.
        identity: the answer's id; ``None`` keeps the server's.
        recorded: the server's answer, which counts before LiteLLM's.

    Raises:
        RequestRejected: the server's response is not an answer.
    """
    if recorded is not None:
        return {**recorded, "id": identity or recorded.get("id"), "model": model}
    try:
        answer = json.loads(raw)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RequestRejected("the model's server sent an invalid response", None, 502)
    _restore_fields(answer)
    return {**answer, "id": identity or answer.get("id"), "model": model}


class EventRewriter:
    """Rewrites the server-sent events of one answer.

    Args:
        identity: the answer's id; ``None`` keeps the server's.
        model: the model's name in the request; ``None`` keeps LiteLLM's.
        index: index of the choice, if several answers become one; ``None`` keeps the server's.
        include_usage: the request asks for the usage: send it as a last chunk of its own. LiteLLM puts usages
            into chunks even without such a request.
    """

    def __init__(
        self,
        identity: str | None = None,
        model: str | None = None,
        *,
        include_usage: bool = False,
        index: int | None = None,
    ) -> None:
        self._identity, self._model, self._include_usage = identity, model, include_usage
        self._index = index
        self._parser = EventParser()
        self._last: dict[str, Any] = {}
        self._recorded_answer: RecordedAnswer | None = None
        self._begun: set[str] = set()
        self._finished: set[str] = set()
        self.usage: dict[str, Any] | None = None
        self.failed, self.status = "", 200

    def begin_answer(self, recorded_answer: RecordedAnswer) -> None:
        """Take the answer of the next events; where it is recorded, its chunks count, not LiteLLM's."""
        self._recorded_answer = recorded_answer

    def feed(self, raw: bytes, *, more: bool) -> bytes:
        """Return the rewritten events that these bytes complete; an incomplete event is held back."""
        return b"".join(encode_event(event) for event in self.read(raw, more=more))

    def read(self, raw: bytes, *, more: bool) -> list[dict[str, Any] | str]:
        """Return the rewritten events that these bytes complete: objects, and ``[DONE]``."""
        events = self._parser.feed(raw)
        if not more:
            events += self._parser.close()
        return [event for data in events for event in self._cleaned(data)]

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._last, "choices": [], "usage": usage}

    def _cleaned(self, data: str) -> list[dict[str, Any] | str]:
        recorded = self._recorded_answer.take_chunks() if self._recorded_answer is not None else None
        chunks = [c for chunk in recorded or () for c in self._cleaned_chunk(chunk)]
        if data.strip() == DONE and recorded is not None and self._begun - self._finished:
            self.failed, self.status = UNFINISHED, 502
            return [*chunks, RequestRejected(UNFINISHED, None, 502).as_json()]
        if data.strip() == DONE:
            if self._include_usage and self.usage is not None and not self.failed:
                chunks.append(self.usage_chunk(self.usage))
            return [*chunks, DONE]
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            return chunks
        if isinstance(event.get("error"), dict):
            status = str(event["error"].get("code"))
            self.status = int(status) if status.isdigit() else 502
            error = _rewrite_error(event["error"], self.status)
            self.failed = error["message"]
            return [*chunks, {"error": error}]
        if recorded is not None:
            return chunks
        _restore_fields(event)
        for choice in _list_choices(event):
            # LiteLLM omits null values.
            choice.setdefault("finish_reason", None)
            if event.get("object") == "text_completion":
                choice["text"] = choice.get("text") or ""
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
        choices = _list_choices(chunk)
        if "choices" in chunk:
            chunk["choices"] = choices
        if usage is not None and not any(says_something(c) for c in choices):
            # The usage's own chunk: LiteLLM's has a choice without content, OpenAI's has no choices.
            return []
        for choice in choices:
            (self._finished if choice.get("finish_reason") else self._begun).add(str(choice.get("index")))
            if self._index is not None:
                choice["index"] = self._index
        return [chunk]


def encode_event(event: dict[str, Any] | str) -> bytes:
    return b"data: " + (event.encode() if isinstance(event, str) else encode_json(event)) + b"\n\n"


def says_something(choice: Mapping[str, Any]) -> bool:
    """Tell whether a choice of a chunk has a role or content of any form, or ends the answer."""
    delta = choice.get("delta")
    return has_content(choice) or (isinstance(delta, dict) and bool(delta.get("role")))


def has_content(choice: Mapping[str, Any]) -> bool:
    """Tell whether a choice of a chunk has content of any form, or ends the answer."""
    return bool(choice.get("finish_reason")) or has_tokens(choice)


def chunk_has_tokens(event: Mapping[str, Any] | str) -> bool:
    """Tell whether an event is a chunk with content of any form."""
    return isinstance(event, Mapping) and any(map(has_tokens, event.get("choices") or ()))


def has_tokens(choice: Mapping[str, Any]) -> bool:
    """Tell whether a choice of a chunk has content of any form."""
    delta = choice.get("delta")
    contents = delta if isinstance(delta, dict) else {"text": choice.get("text")}
    return any(v for k, v in contents.items() if k != "role")


def _rewrite_error(row: dict[str, Any], status: int) -> dict[str, Any]:
    message = _SUFFIX.sub("", _PREFIX.sub("", str(row.get("message") or "")))
    if quoted := _read_quoted_error(message):
        row, message = {**row, "param": quoted.get("param")}, str(quoted["message"])
    named = _NAMED.match(message)
    param = row.get("param") or (named[1] if named and named[1] in PARAMETERS else None)
    # LiteLLM's code repeats the status; OpenAI's codes are words.
    code = row.get("code")
    if code is None or str(code).isdigit():
        code = "rate_limit_exceeded" if status == 429 else None
    error: dict[str, Any] = RequestRejected(message, param, status, code).as_json()["error"]
    return error


def _read_quoted_error(message: str) -> dict[str, Any] | None:
    """Return the server's error that the openai client's message quotes, if it does."""
    match = _QUOTED.match(message)
    if match is None:
        return None
    try:
        error = ast.literal_eval(match[1])["error"]
    except (ValueError, SyntaxError, MemoryError, RecursionError, KeyError, TypeError):
        return None
    return error if isinstance(error, dict) and "message" in error else None


def _list_choices(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []


def _restore_fields(answer: dict[str, Any]) -> None:
    """Put the fields that LiteLLM does not know back where the server had them."""
    choices = _list_choices(answer)
    inner = [c[name] for c in choices for name in ("message", "delta") if isinstance(c.get(name), dict)]
    for row in (answer, *choices, *inner):
        fields = row.pop("provider_specific_fields", None)
        for name, value in fields.items() if isinstance(fields, dict) else ():
            row.setdefault(name, value)


def encode_json(value: Any) -> bytes:
    """Return a value as JSON in UTF-8; half a surrogate pair of a server becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
