"""Keys from files: never in the Nix store, on a command line, in a log, or in a start's environment."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from enginix.credentials import locate_key_file
from enginix.errors import UsageError
from enginix.gateway.request import RequestRejected
from enginix.gateway.spec import GatewayClient, GatewaySpec

OPERATOR = "operator"
MONITOR = "monitor"
_MIN_CHARACTERS = 16


@dataclass(frozen=True)
class Caller:
    """A caller of the gateway.

    Attributes:
        name: the client's name; ``operator`` for the gateway's own key, ``monitor`` for the key of its
            metrics, ``anyone`` if no keys are configured.
        client: the client's limits; None without limits.
        is_monitor: the key reads metrics, and nothing else.
    """

    name: str
    client: GatewayClient | None = None
    is_monitor: bool = False


ANYONE = Caller("anyone")


class Keys:
    """The keys of a gateway; only their digests are kept."""

    def __init__(self, spec: GatewaySpec) -> None:
        """Read all key files.

        Raises:
            UsageError: a file is missing, readable by everybody, or holds no key or another client's key.
        """
        self._callers: dict[str, Caller] = {}
        self._add(Caller(OPERATOR), spec.key_file)
        self._add(Caller(MONITOR, is_monitor=True), spec.metrics_key_file)
        for name, client in spec.clients.items():
            self._add(Caller(name, client), client.key_file)

    @property
    def asked(self) -> bool:
        """Tell whether any keys are configured."""
        return bool(self._callers)

    @property
    def callers(self) -> list[Caller]:
        """Return all callers that may send requests."""
        return [c for c in self._callers.values() if not c.is_monitor] or [ANYONE]

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Return the caller whose key a request's headers have.

        Raises:
            RequestRejected: the request has no key, several, or an unknown one.
        """
        values = [v for k, v in headers if k == b"authorization"]
        word, _, key = (values[0].decode("latin-1") if len(values) == 1 else "").partition(" ")
        caller = self.caller(key.strip() if word.lower() == "bearer" else None)
        if caller is None:
            reason = "unknown key" if values else "no key is given: Authorization: Bearer KEY"
            raise RequestRejected(reason, None, 401, "invalid_api_key")
        return caller

    def caller(self, key: str | None) -> Caller | None:
        """Return the caller with this key; None if it is unknown."""
        if not self._callers:
            return ANYONE
        # Looked up by digest, so that the time of the search does not depend on a key.
        return self._callers.get(_hash_key(key or ""))

    def _add(self, caller: Caller, path: str | None) -> None:
        if path is None:
            return
        digest = _hash_key(read_key(path))
        if digest in self._callers:
            raise UsageError(
                f"{caller.name} and {self._callers[digest].name} have the same key",
                where=path,
                fix="one key each",
            )
        self._callers[digest] = caller


def read_key(path: str) -> str:
    """Read the key in a file; a relative path is below $CREDENTIALS_DIRECTORY (systemd's credentials).

    Raises:
        UsageError: missing, not one line of at least 16 characters, or readable by everybody.
    """
    file = locate_key_file(path)
    try:
        mode, text = file.stat().st_mode, file.read_text("utf-8").strip()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise UsageError(f"the key cannot be read: {reason}", where=file) from e
    if len(text) < _MIN_CHARACTERS or any(c.isspace() or not 32 < ord(c) < 127 for c in text):
        raise UsageError(
            f"the file does not hold one key: one line of at least {_MIN_CHARACTERS} ASCII characters",
            where=file,
            fix="openssl rand -hex 32",
        )
    if mode & stat.S_IROTH:
        raise UsageError(
            "everybody can read the key", where=file, fix="chmod 600, or pass a systemd credential"
        )
    return text


def _hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
