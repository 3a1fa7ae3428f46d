"""huggingface_hub, set up once: private caches, time-outs, and a token that never leaves the hub's host."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from enginix import __version__
from enginix.errors import UsageError

if TYPE_CHECKING:
    import httpx

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT = 30.0  # seconds without a byte, for answers of the API


def read_endpoint() -> str:
    """Return the hub's address: ``HF_ENDPOINT``, or the public Hub.

    Raises:
        UsageError: not an http or https address, or one with a password.
    """
    text = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    try:
        url = urlsplit(text)
        is_valid = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or True)
    except ValueError:
        is_valid = False
    if is_valid and (url.username is not None or url.password is not None):
        raise UsageError(
            "the address has a user name or password in it",
            where="HF_ENDPOINT",
            fix="remove it: addresses appear in errors; set HF_TOKEN to authenticate",
        )
    if not is_valid:
        raise UsageError(
            "not an http(s) address", where="HF_ENDPOINT", fix=f"for instance {DEFAULT_ENDPOINT}"
        )
    return text


def is_same_host(url: str, home: str) -> bool:
    """Return whether ``url`` has the host and port of ``home`` and is not less protected."""
    try:
        a, b = urlsplit(url), urlsplit(home)
        ports = {"http": 80, "https": 443}
        same_port = (a.port or ports.get(a.scheme)) == (b.port or ports.get(b.scheme))
    except ValueError:
        return False
    is_upgrade = (b.scheme, a.scheme) == ("http", "https") and a.port is None and b.port is None
    return a.hostname == b.hostname and ((a.scheme == b.scheme and same_port) or is_upgrade)


def set_private_caches(directory: Path) -> None:
    """Make huggingface_hub and hf_xet keep their caches below ``directory``.

    Builds have no home, and a cache on another file system would hold a second copy. A token that
    ``hf auth login`` stored is still found. Call it before the first import of either.
    """
    if "huggingface_hub" in sys.modules:
        return
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    os.environ.setdefault("HF_TOKEN_PATH", os.path.join(home, "token"))
    os.environ["HF_HOME"] = str(directory)
    for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "HUGGINGFACE_HUB_CACHE"):
        os.environ.pop(name, None)


@cache
def prepare_hub_client() -> None:
    """Import huggingface_hub with quiet, bounded, token-safe defaults. Idempotent."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx.Client:
        http_client = default_client_factory()
        hooks = http_client.event_hooks
        http_client.event_hooks = {**hooks, "request": [*hooks["request"], _keep_token_home]}
        return http_client

    set_client_factory(client)
    disable_progress_bars()
    # Its warnings contain signed addresses, and the failures that they report are retried here.
    hub_logging.set_verbosity(logging.ERROR)
    # Pieces as the socket gives them (httpx's meaning of None): collected to 10 MB, they would fall out of
    # the processor's cache between the socket, the hash and the file, which costs more than hashing does.
    constants.DOWNLOAD_CHUNK_SIZE = None  # type: ignore[assignment]


def import_http_client() -> Any:
    """Return the HTTP client of the installed huggingface_hub: httpx, and httpx2 from its version 2 on."""
    import huggingface_hub

    major = huggingface_hub.__version__.partition(".")[0]
    return importlib.import_module("httpx" if major in ("0", "1") else "httpx2")


def build_hub_headers() -> dict[str, str]:
    """Return the headers of a request to the hub, with the token if there is one.

    The token is ``HF_TOKEN``, or what ``hf auth login`` stored.
    """
    prepare_hub_client()
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    hub_headers = dict(build_hf_headers(library_name="enginix", library_version=__version__))
    token_text = hub_headers.get("authorization", "").removeprefix("Bearer ")
    if invalid := next((c for c in token_text if not "!" <= c <= "~"), None):
        raise UsageError(
            f"the token has the invalid character U+{ord(invalid):04X}",
            where="HF_TOKEN",
            fix="copy it again, without spaces or invisible characters (or hf auth login again)",
        )
    return hub_headers


def read_hub_token() -> str | None:
    """Return the token that :func:`build_hub_headers` sends; None without one."""
    return build_hub_headers().get("authorization", "").removeprefix("Bearer ") or None


def _keep_token_home(request: httpx.Request) -> None:
    """Remove the token from a request that leaves the hub's own host; runs before redirected ones, too."""
    if not is_same_host(str(request.url), read_endpoint()):
        request.headers.pop("authorization", None)
