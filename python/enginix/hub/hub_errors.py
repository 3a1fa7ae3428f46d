"""Translate errors of the hub and the network into enginix's own."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

from enginix.credentials import has_secret, redact_secrets
from enginix.errors import EnginixError, HubError, MachineError
from enginix.hub import session

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TOKEN_FIX = """make a token with read access at {endpoint}/settings/tokens, then: export HF_TOKEN=hf_…
  Nix builds in a daemon read it from nix-daemon's environment: on NixOS set
  systemd.services.nix-daemon.serviceConfig.EnvironmentFile = "/run/secrets/hf-token" (a line HF_TOKEN=hf_…);
  elsewhere `systemctl edit nix-daemon` and EnvironmentFile= the same, then restart it"""


def translate_hub_error(e: BaseException, repo: str, path: str | None = None) -> EnginixError:
    """Return enginix's error for an exception of huggingface_hub, its HTTP client, or the file system.

    Texts of the server are shortened and made printable, and the token is removed from them.
    """
    from huggingface_hub import errors

    where = f"{repo}: {path}" if path else repo
    if isinstance(e, EnginixError):
        return e
    if isinstance(e, errors.OfflineModeIsEnabled):
        return HubError("huggingface_hub is in offline mode", where=where, fix="unset HF_HUB_OFFLINE")
    if isinstance(e, errors.HfHubHTTPError):
        return _translate_http_error(e, repo, where)
    if isinstance(e, _list_client_errors("TimeoutException")):
        return HubError(f"{session.read_endpoint()} stopped answering", where=where, fix="try again later")
    if isinstance(e, _list_client_errors("HTTPError")):
        return HubError(
            f"cannot reach {session.read_endpoint()}: {clean_text(str(e)) or type(e).__name__}",
            where=where,
            fix="check the network and HF_ENDPOINT, then run again",
        )
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError("the disk is full", where=where, fix="free disk space, or choose another -o")
    if isinstance(e, OSError) and e.errno is not None:
        return MachineError(f"cannot write: {e.strerror}", where=where, fix="choose another -o")
    return HubError(
        f"{type(e).__name__}: {clean_text(str(e))}",
        where=where,
        fix="run again; finished files are not fetched again",
    )


def _list_client_errors(name: str) -> tuple[type[BaseException], ...]:
    """List the classes of a name in the HTTP clients that are loaded (session.import_http_client)."""
    clients = (sys.modules.get(module) for module in ("httpx", "httpx2"))
    return tuple(getattr(client, name) for client in clients if client is not None)


def _translate_http_error(e: HfHubHTTPError, repo: str, where: str) -> HubError:
    from huggingface_hub import errors

    status = e.response.status_code
    message = clean_text(e.response.headers.get("X-Error-Message") or e.response.reason_phrase)
    page = f"{session.read_endpoint()}/{repo}"
    token_fix = TOKEN_FIX.format(endpoint=session.read_endpoint())
    if isinstance(e, errors.GatedRepoError):
        if session.read_hub_token():
            return HubError(
                f"the token may not read it: its account has not accepted the licence ({status})",
                where=where,
                fix=f"open {page} with the token's account and accept the licence",
            )
        return HubError(
            f"gated, and HF_TOKEN is not set ({status})",
            where=where,
            fix=f"open {page} and accept the licence; {token_fix}",
        )
    if isinstance(e, errors.RevisionNotFoundError):
        return HubError("no such revision", where=where, fix=f"look at {page}/commits/main")
    if isinstance(e, errors.RemoteEntryNotFoundError):
        return HubError(
            "no such file at this revision", where=where, fix="write the lock again with `enginix lock`"
        )
    if isinstance(e, errors.RepositoryNotFoundError):
        fix = f"check the name; if it is private, {token_fix}"
        return HubError(f"no such repository, or it is private ({status})", where=where, fix=fix)
    if status == 401:
        return HubError(f"the hub refused the token: {message}", where=where, fix=token_fix)
    if status == 429:
        return HubError(
            "the hub asks to slow down (429)", where=where, fix="wait some minutes, or set HF_TOKEN"
        )
    fix = (
        f"check the name, and that {session.read_endpoint()} is a hub" if status == 404 else "run again later"
    )
    return HubError(f"the hub answered {status}: {message}", where=where, fix=fix)


def clean_text(text: str) -> str:
    """Return an untrusted text as one printable line of at most 200 characters, without the token."""
    line = "".join(c if c.isprintable() else " " for c in redact_secrets(text))
    return "(a text with the <token>)" if has_secret(line) else " ".join(line.split())[:200]


def make_answer_error(where: str, what: str) -> HubError:
    """Return the error of a server whose answer is not that of a hub."""
    return HubError(
        f"{session.read_endpoint()} does not answer as a hub: {what}",
        where=where,
        fix="check HF_ENDPOINT, proxies and captive portals",
    )
