"""Secrets: files that hold one, and texts from which they are removed."""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from enginix.errors import UsageError


def locate_key_file(path: str) -> Path:
    """Return the path of a key's file.

    Raises:
        UsageError: the path is relative, and systemd has given no credentials.
    """
    if os.path.isabs(path):
        return Path(path)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise UsageError(
            "a relative path names a systemd credential, and CREDENTIALS_DIRECTORY is not set",
            where=path,
            fix="pass an absolute path, or set LoadCredential in the unit",
        )
    return Path(directory) / path


_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_ADDRESSES = (
    "HF_ENDPOINT",
    *(f(f"{n}_proxy") for n in ("http", "https", "all") for f in (str.lower, str.upper)),
)
_USER_INFO = re.compile(r"(?<=://)[^/?#\s@'\"]+@")
_SHORTEST_SECRET = 8  # characters; a shorter text occurs in other texts by chance


def redact_secrets(text: str) -> str:
    """Return a text without the hub's token and the passwords in addresses, encoded forms included."""
    for secret in sorted(set(_iterate_secret_forms()), key=len, reverse=True):
        text = text.replace(secret, "<token>")
    return _USER_INFO.sub("<credentials>@", text)


def has_secret(text: str) -> bool:
    """Return whether a text holds a secret, also with spaces or invisible characters in between."""
    bare = "".join(c for c in text if c.isprintable() and not c.isspace())
    return any(secret in text or secret in bare for secret in _iterate_secret_forms())


def _iterate_secret_forms() -> Iterator[str]:
    for secret in _iterate_plain_secrets():
        if len(secret) >= _SHORTEST_SECRET:
            yield secret
            yield quote(secret, safe="")
            # In base 64 at each of the three possible offsets, without the ends that neighbours change.
            for n in range(3):
                yield base64.b64encode(b" " * n + secret.encode("utf-8", "replace"))[4:-4].decode()


def _iterate_plain_secrets() -> Iterator[str]:
    for name in _TOKENS:
        yield os.environ.get(name, "").strip()
    for name in _ADDRESSES:
        if match := _USER_INFO.search(os.environ.get(name, "")):
            password = match[0][:-1].partition(":")[2]
            yield password
            yield unquote(password)
    # A token that `hf auth login` stored.
    if (hub := sys.modules.get("huggingface_hub")) is not None:
        yield (hub.get_token() or "").strip()
