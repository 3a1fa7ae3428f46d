"""Options of tritonserver that a user adds, checked against its version before it starts.

tritonserver refuses unknown options only after the start, and an earlier version does not know the options of
a later one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from enginix.errors import UsageError
from enginix.files import refuse_damage
from enginix.serve.options import ProgramOptions
from enginix.tables import load_table

# Name of the header (HTTP) that opens restricted APIs; over gRPC it is triton-grpc-protocol-<name>.
ADMIN_HEADER = "enginix-key"
_KEY = re.compile(r"[A-Za-z0-9_.~-]{16,128}")
TRITONSERVER = ProgramOptions(
    option="--triton-flag",
    name="tritonserver",
    of_version="tritonserver {}",
    table="triton_flags",
    rows="flags",
)


def check_triton_flags(given: Iterable[str], version: str) -> tuple[str, ...]:
    """Check a user's ``NAME=VALUE`` options for a tritonserver version (:meth:`ProgramOptions.checked`)."""
    pairs = TRITONSERVER.checked(given, version)
    return tuple(f"--{name}" if value is None else f"--{name}={value}" for name, value in pairs)


def read_admin_key(path: Path | None) -> str:
    """Return the key of restricted APIs: a file's content, or a random key, which keeps them closed.

    Raises:
        UsageError: the file is unreadable, or the option cannot carry the key.
    """
    if path is None:
        return secrets.token_urlsafe(24)
    with refuse_damage(UsageError, f"--admin-key-file {path}"):
        key = path.read_text("utf-8").strip()
    if not _KEY.fullmatch(key):
        raise UsageError(
            "the key is not 16 to 128 letters, digits or ._~-",
            where=f"--admin-key-file {path}",
            fix="openssl rand -hex 24",
        )
    return key


def closing_options(version: str, key: str) -> list[str]:
    """Return options that close shared memory of clients and control over models."""
    apis = ",".join(load_table("triton_flags")["restricted"])
    words = [
        f"--http-restricted-api={apis}:{ADMIN_HEADER}={key}",
        f"--grpc-restricted-protocol={apis}:{ADMIN_HEADER}={key}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
    ]
    if TRITONSERVER.has("allow-client-shm", version):
        words.append("--allow-client-shm=false")
    return words
