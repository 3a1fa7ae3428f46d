"""Check requests to the OpenAI interface, and convert their parameters to Triton's inputs.

A parameter is passed on or refused by name, never dropped silently.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from enginix.tables import load_table
from enginix.wording import suggest_name

ROUTES: dict[str, str] = load_table("openai")["routes"]
PARAMETERS: dict[str, dict[str, Any]] = load_table("openai")["parameters"]
INSTEAD_OF_CONTENT: list[str] = load_table("openai")["insteadOfContent"]
# bool is a subclass of int, but JSON's true is not a number.
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}
MAX_PROMPTS = 128
MAX_STOP_WORDS = 128
MAX_STOP_CHARACTERS = 1024
# LiteLLM reads whole numbers of 64 bits; others become inexact, or infinite.
_WHOLE_NUMBERS = range(-(2**63), 2**64)
# Roles whose messages have a content, as OpenAI's reference has it; of an assistant it may be null.
_WITH_CONTENT = ("developer", "system", "user", "tool")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


class RequestRejected(Exception):
    """A request that is answered with an error.

    Args:
        message: text for the client.
        param: the parameter that is at fault, as OpenAI's error object names it.
        status: HTTP status.
        code: OpenAI's code for the error, if there is one.
        retry_after: seconds after which the same request may be let through.
        closes_connection: what follows on the connection is not read as a request.
        methods: that the route has, where it has not that of the request.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        *,
        retry_after: int | None = None,
        closes_connection: bool = False,
        methods: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code
        self.retry_after, self.closes_connection = retry_after, closes_connection
        self.methods = methods

    def as_json(self) -> dict[str, Any]:
        """Return the error's body, in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def check_openai_request(route: str, body: Mapping[str, Any], *, is_triton: bool) -> None:
    """Check all parameters of a request; null counts as absent.

    Args:
        route: ``chat`` or ``completions``.
        is_triton: a Triton server answers it, which supports fewer parameters.

    Raises:
        RequestRejected: the first parameter that is unknown, not supported, or of another type or range.
    """
    for name, value in body.items():
        row = PARAMETERS.get(name)
        if row is None or route not in row.get("routes", (route,)):
            raise _unknown_parameter(name, route)
        if value is None:
            continue
        _check_numbers(name, value)
        _check_type(name, value, row)
        is_limited = "only" in row and (is_triton or row.get("everywhere"))
        if is_limited and not any(_is_same_json(value, v) for v in row["only"]):
            whose = "" if row.get("everywhere") else " by this model's server"
            raise RequestRejected(f"{name}: not supported{whose}{_list_allowed_values(row)}", name)
    needed = "messages" if route == "chat" else "prompt"
    for name in ("model", needed):
        if body.get(name) is None:
            raise RequestRejected(f"{name} is missing", name)
    _check_stream(body)
    _check_max_tokens(route, body, is_triton=is_triton)
    if route == "chat":
        if is_triton:
            parse_text_messages(body["messages"])
        else:
            _check_contents(body["messages"])
            _check_tools(body.get("tools") or ())
    elif is_triton:
        parse_prompts(body["prompt"])
    if body.get("stop") is not None:
        parse_stop_words(body["stop"])


def build_triton_inputs(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return Triton's inputs for sampling parameters that :func:`check_openai_request` accepted.

    ``stop`` has no input: Triton's stop words are sequences of tokens, OpenAI's are texts.

    Raises:
        RequestRejected: a parameter has no input.
    """
    triton_inputs: dict[str, Any] = {}
    for name, value in parameters.items():
        row = PARAMETERS.get(name, {})
        if value is None or row.get("own") or "only" in row:
            continue
        if "triton" not in row:
            raise RequestRejected(f"{name}: the model has no input for it", name)
        if name == "ignore_eos":
            # -1 means no logprobs (docs/reference/triton.md); false is the default.
            triton_inputs |= {"end_id": -1} if value else {}
        elif name == "seed":
            # OpenAI's has a sign; Triton's input has none.
            triton_inputs["seed"] = value % 2**63
        elif name == "chat_template_kwargs":
            triton_inputs["chat_template_args"] = json.dumps(value, ensure_ascii=False)
        else:
            triton_inputs[row["triton"]] = value
    if triton_inputs.get("top_p") == 0:
        # The smallest set of tokens is the most likely one. TensorRT-LLM's top_p 0 beside top_k is no limit.
        triton_inputs["temperature"] = 0
    if "seed" not in triton_inputs and _is_sampled(triton_inputs):
        # NVIDIA's default is a fixed seed; OpenAI's default is another answer each time.
        triton_inputs["seed"] = secrets.randbelow(2**63)
    return triton_inputs


def _is_sampled(question: Mapping[str, Any]) -> bool:
    """Tell whether the server would sample: one of the three is given; temperature 0 or top_k 1 is greedy."""
    if question.get("temperature") == 0 or question.get("top_k") == 1:
        return False
    return bool(question.get("temperature") or question.get("top_k") or question.get("top_p"))


def parse_prompts(value: Any) -> list[str]:
    """Return ``prompt`` as a list of texts.

    Raises:
        RequestRejected: token ids, an empty list, or more texts than one request may have.
    """
    prompt_texts = [value] if isinstance(value, str) else value
    if (
        not isinstance(prompt_texts, list)
        or not prompt_texts
        or not all(isinstance(p, str) for p in prompt_texts)
    ):
        raise RequestRejected(
            "prompt: not a text, or a list of texts; this model's server takes no token ids", "prompt"
        )
    if len(prompt_texts) > MAX_PROMPTS:
        raise RequestRejected(
            f"prompt: {len(prompt_texts)} texts, and one request may have {MAX_PROMPTS}", "prompt"
        )
    return prompt_texts


def parse_stop_words(value: Any) -> list[str]:
    """Return ``stop`` as a list.

    Raises:
        RequestRejected: not a text or a list of texts, or more or longer ones than a request may have.
    """
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(w, str) and w for w in words):
        raise RequestRejected("stop: not a text, or a list of texts that are not empty", "stop")
    if len(words) > MAX_STOP_WORDS:
        raise RequestRejected(f"stop: {len(words)} texts, and one request may have {MAX_STOP_WORDS}", "stop")
    longest = max(map(len, words), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise RequestRejected(
            f"stop: {longest} characters, and a text may have {MAX_STOP_CHARACTERS}", "stop"
        )
    return words


def parse_text_messages(messages: Any) -> list[dict[str, Any]]:
    """Return messages with texts as contents: parts of type text are joined by line ends.

    Raises:
        RequestRejected: not a list of objects, or a content is not text (images, audio, files).
    """
    if not isinstance(messages, list) or not messages:
        raise RequestRejected("messages: not a list of at least one message", "messages")
    return [_parse_text_message(number, message) for number, message in enumerate(messages)]


def _parse_text_message(number: int, value: Any) -> dict[str, Any]:
    message = _require_role(number, value)
    where = f"messages[{number}]"
    content = message.get("content")
    if isinstance(content, list):
        parts = []
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(text, str):
                part_name = f"{where}.content[{i}]"
                raise RequestRejected(f"{part_name}: this model's server takes texts only", part_name)
            _refuse_other_fields(part, ("type", "text"), f"{where}.content[{i}]")
            parts.append(text)
        return {**message, "content": "\n".join(parts)}
    if not isinstance(content, str) and not (content is None and may_omit_content(message)):
        raise RequestRejected(f"{where}.content: missing, or not a text", f"{where}.content")
    return message


def may_omit_content(message: Mapping[str, Any]) -> bool:
    """Tell whether a message without content is one: an assistant's tool calls, or refusal, alone."""
    return message.get("role") == "assistant" and any(map(message.get, INSTEAD_OF_CONTENT))


def _require_role(number: int, message: Any) -> dict[str, Any]:
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise RequestRejected(f'{where}: not an object such as {{"role": "user", "content": "…"}}', where)
    if not isinstance(message.get("role"), str):
        raise RequestRejected(f"{where}.role: missing, or not a text", f"{where}.role")
    return message


def _check_contents(messages: Any) -> None:
    """Check contents for a server with OpenAI's interface, which accepts more than texts.

    LiteLLM fetches the URL of a content, in the gateway's network and with its addresses. Only contents that
    include their data pass.

    Raises:
        RequestRejected: a message is not an object with a role, or a content does not include its data.
    """
    for number, message in enumerate(messages):
        content = _require_role(number, message).get("content")
        where = f"messages[{number}].content"
        if content is None and message["role"] in _WITH_CONTENT:
            raise RequestRejected(f"{where}: missing, or null", where)
        if isinstance(content, list):
            for i, part in enumerate(content):
                _check_part(part, f"{where}[{i}]")
        elif content is not None and not isinstance(content, str):
            raise RequestRejected(f"{where}: not a text, or a list of parts", where)


def _check_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    inner = part.get(kind) if isinstance(kind, str) else None
    if kind in ("text", "refusal") and isinstance(inner, str):
        _refuse_other_fields(part, ("type", kind), where)
        return
    if kind == "image_url" and part.keys() == {"type", kind}:
        image = {"url": inner} if isinstance(inner, str) else inner
        if isinstance(image, dict) and image.keys() <= {"url", "detail"}:
            if not str(image.get("url")).startswith("data:image/"):
                raise RequestRejected(
                    f"{where}: send the image itself (data:image/…), not its address",
                    f"{where}.image_url.url",
                )
            return
    if kind == "input_audio" and part.keys() == {"type", kind} and isinstance(inner, dict):
        data = inner.get("data")
        if inner.keys() <= {"data", "format"} and isinstance(data, str) and _BASE64.fullmatch(data):
            return
        raise RequestRejected(
            f"{where}: send the audio itself (base64), not its address", f"{where}.input_audio.data"
        )
    raise RequestRejected(
        f"{where}: only texts, images and audio that are sent with the request are passed on", f"{where}.type"
    )


def _refuse_other_fields(part: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name, value in part.items():
        if name not in known and value is not None:
            field = f"{where}.{name[:64]}"
            raise RequestRejected(f"{field}: not passed on", field)


def _check_tools(tools: Sequence[Any]) -> None:
    """Refuse tools of other types: LiteLLM connects to the servers that they name (``server_url``)."""
    for number, tool in enumerate(tools):
        kind = tool.get("type", "function") if isinstance(tool, dict) else None
        if kind not in ("function", "custom"):
            where = f"tools[{number}]"
            raise RequestRejected(
                f"{where}: only tools of type function or custom are passed on", f"{where}.type"
            )


def _check_numbers(name: str, value: Any) -> None:
    """Check all numbers of a value, at any depth.

    Raises:
        RequestRejected: a number that no 64 bits hold.
    """
    for level in iterate_levels(value):
        for v in level:
            if isinstance(v, float) and not math.isfinite(v):
                raise RequestRejected(f"{name}: a number is too large (above 1.8e308)", name)
            if isinstance(v, int) and v not in _WHOLE_NUMBERS:
                raise RequestRejected(f"{name}: a whole number has more than 64 bits", name)


def iterate_levels(value: Any) -> Iterator[list[Any]]:
    """Yield the values of each depth of a JSON value, itself first; without recursion."""
    level = [value]
    while level:
        yield level
        level = [
            inner
            for v in level
            if isinstance(v, dict | list)
            for inner in (v.values() if isinstance(v, dict) else v)
        ]


def _check_type(name: str, value: Any, row: Mapping[str, Any]) -> None:
    fits = any(
        isinstance(value, _TYPES[t]) and (t == "boolean" or not isinstance(value, bool)) for t in row["type"]
    )
    if not fits:
        raise RequestRejected(
            f"{name}: {_shorten_json(value)} is not of type {' or '.join(row['type'])}", name
        )
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    low, above, high = (row.get(k) for k in ("minimum", "above", "maximum"))
    fits = (
        (low is None or value >= low) and (above is None or value > above) and (high is None or value <= high)
    )
    if not fits:
        least = f"at least {low}" if low is not None else f"above {above}"
        raise RequestRejected(f"{name}: {_shorten_json(value)} is not {least} and at most {high}", name)


def _check_stream(body: Mapping[str, Any]) -> None:
    options = body.get("stream_options")
    if not options:
        return
    if not body.get("stream"):
        raise RequestRejected("stream_options: allowed only with stream", "stream_options")
    for name, value in options.items():
        field = f"stream_options.{name[:64]}"
        if name not in ("include_usage", "include_obfuscation"):
            raise RequestRejected(f"{field}: no such parameter", field)
        if value is not None and not isinstance(value, bool):
            raise RequestRejected(f"{field}: not true or false", field)
    if options.get("include_obfuscation"):
        raise RequestRejected(
            "stream_options.include_obfuscation: not supported, except with the value false",
            "stream_options.include_obfuscation",
        )


def _check_max_tokens(route: str, body: Mapping[str, Any], *, is_triton: bool) -> None:
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old == 0 and (route == "chat" or is_triton):
        # A completion of no tokens is of use with echo and logprobs, which Triton's models do not have.
        whose = "" if route == "chat" else "; this model's server has no answers without tokens"
        raise RequestRejected(f"max_tokens: 0 is not at least 1{whose}", "max_tokens")
    if old is not None and new is not None and old != new:
        raise RequestRejected(
            f"max_tokens is {old} and max_completion_tokens is {new}; give one", "max_tokens"
        )


def _unknown_parameter(name: str, route: str) -> RequestRejected:
    known = [n for n, row in PARAMETERS.items() if route in row.get("routes", (route,))]
    hint = suggest_name(name, known, cutoff=0.7)
    message = f"{_shorten_json(name)[1:-1]}: no such parameter"
    return RequestRejected(f"{message}; {hint}" if hint else message, name[:64])


def _list_allowed_values(row: Mapping[str, Any]) -> str:
    values = " or ".join(json.dumps(v) for v in row["only"])
    return f", except with the value {values}" if values else ""


def _is_same_json(value: Any, known: Any) -> bool:
    return bool(value == known) and isinstance(value, bool) == isinstance(known, bool)


def _shorten_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"
