"""Parse the JSON body of a request, whatever a client sends."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from typing import Any

from enginix.gateway.client_request import ClientRequest
from enginix.gateway.request import RequestRejected, iterate_levels
from enginix.gateway.spec import GatewayLimits

# Deeper than any message; parsers of the servers behind crash at far deeper nesting
# (docs/reference/triton.md, Faults).
_MAX_DEPTH = 32


async def read_json_body(request: ClientRequest, limits: GatewayLimits) -> dict[str, Any]:
    """Read a request's body, which is one JSON object.

    Raises:
        RequestRejected: the body is compressed, too large, late, too deeply nested, or not a JSON object.
    """
    encodings = [v for k, v in request.scope["headers"] if k == b"content-encoding"]
    if any(v.strip().lower() not in (b"", b"identity") for v in encodings):
        raise RequestRejected(
            "Content-Encoding: a compressed request is not read; send it as it is", None, 415
        )
    try:
        raw = await asyncio.wait_for(request.read(limits.max_body_bytes), limits.body_seconds)
    except asyncio.TimeoutError as e:
        raise RequestRejected(f"the request was not sent within {limits.body_seconds} s", None, 408) from e
    try:
        # As bytes, json would also read UTF-16 and UTF-32.
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=_reject_constant)
        # Half a surrogate pair is not a character; it would become a question mark on the way.
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise RequestRejected(
            "the request has half a surrogate pair (\\ud800 to \\udfff), which is not text"
        ) from e
    except (ValueError, RecursionError) as e:
        # A parser's message may quote the text.
        where = f" at character {e.pos}" if isinstance(e, json.JSONDecodeError) else ""
        raise RequestRejected(f"the request is not JSON{where}") from e
    if not isinstance(body, dict):
        raise RequestRejected("the request is not a JSON object")
    deepest = next(islice(iterate_levels(body), _MAX_DEPTH, None), [])
    if any(isinstance(v, dict | list) for v in deepest):
        raise RequestRejected(f"the request is nested deeper than {_MAX_DEPTH}")
    return body


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
