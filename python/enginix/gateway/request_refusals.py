"""The gateway's routes, and refusals by headers, address and route, before a request's body is read."""

from __future__ import annotations

from urllib.parse import urlsplit

from enginix.gateway.exchange import Scope
from enginix.gateway.request import ROUTES, RequestRejected
from enginix.ports import is_loopback_host

MODELS = "/v1/models"
HEALTH = ("/health/live", "/health/ready")
METRICS = "/metrics"
READING = ("GET", "HEAD")


def list_methods(path: str) -> tuple[str, ...]:
    """Return the methods of a route; none where there is no such route."""
    if path in ROUTES:
        return ("POST",)
    return READING if path in (MODELS, METRICS, *HEALTH) or path.startswith(f"{MODELS}/") else ()


def refuse_web_page(scope: Scope) -> None:
    """Refuse a browser's request for a web page of another machine: without keys, any page could ask.

    Browsers name the page's address in ``Origin`` in each POST request, also where a name was bound to this
    machine's address (RFC 6454). Programs send none; pages of this machine may ask.

    Raises:
        RequestRejected: the page is not one of this machine.
    """
    for name, value in scope["headers"]:
        if name == b"origin" and not _is_of_this_machine(value.decode("latin-1")):
            raise RequestRejected(
                "a web page of another address asks, and this gateway has no keys; give it keys", None, 403
            )


def _is_of_this_machine(origin: str) -> bool:
    try:
        return is_loopback_host(urlsplit(origin).hostname or "")
    except ValueError:
        return False


def refuse_two_lengths(scope: Scope) -> None:
    """Refuse a request whose body has two lengths: a proxy in front may read another end than this server.

    RFC 9112, section 6.1.

    Raises:
        RequestRejected: the request has both Content-Length and Transfer-Encoding; its connection is closed.
    """
    names = {k for k, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise RequestRejected(
            "the request has both Content-Length and Transfer-Encoding", None, closes_connection=True
        )


def refuse_query(scope: Scope) -> None:
    """Refuse a query string: LiteLLM would take parameters from it, before those of the body.

    Raises:
        RequestRejected: the request has a query string.
    """
    if scope.get("query_string"):
        raise RequestRejected("the address has a query string (?…); parameters belong in the body, as JSON")


def make_route_error(scope: Scope) -> RequestRejected:
    """Return the refusal of a method or path (RFC 9110, 15.5.5 and 15.5.6)."""
    path, methods = replace_unprintable(scope["path"]), list_methods(scope["path"])
    what = f"{path}: no such route for {scope['method']}"
    return RequestRejected(what, None, 405 if methods else 404, methods=methods)


def replace_unprintable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:300])
