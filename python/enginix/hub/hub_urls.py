"""Take a repository's address on the Hub, as a browser shows it, for its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from enginix.credentials import redact_secrets
from enginix.errors import UsageError
from enginix.hub import lock, session
from enginix.hub.lock import RepoType

# Hosts of the public Hub; a mirror is HF_ENDPOINT's host.
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
# Pages below a repository; some name a revision.
_REVISION_PAGES = ("tree", "blob", "resolve", "raw", "commit", "commits")
_PAGES = ("discussions", "edit", "settings", "viewer")


@dataclass(frozen=True)
class HubSource:
    """A repository's name and type, and the revision that its address names, if any."""

    name: str
    type: RepoType
    revision: str | None


def parse_hub_source(text: str) -> HubSource:
    """Return the repository that a name or an address means; other texts pass unchanged, as names.

    Raises:
        UsageError: an address of another host or without a repository, or a path that does not exist.
    """
    words = text.strip()
    if words.startswith("hf://"):
        path, _, revision = words.removeprefix("hf://").partition("@")
        source = _parse_path(path, words)
        return replace(source, revision=unquote(revision.split("/")[0]) or source.revision)
    host = words.split("/")[0].lower()
    if "://" not in words and host not in (*_HOSTS, _read_endpoint_host()):
        _refuse_path(words)
        return HubSource(text, "model", None)
    try:
        url = urlsplit(words if "://" in words else f"https://{words}")
        host = (url.hostname or "").lower()
    except ValueError:
        host = ""
    if host not in (*_HOSTS, _read_endpoint_host()):
        raise UsageError(
            "an address of another host than the Hub's",
            where=ascii(redact_secrets(words))[1:-1][:100],
            fix="pass owner/name; for a mirror set HF_ENDPOINT to its address",
        )
    return _parse_path(url.path, words)


def choose_revision(source: HubSource, asked: str | None) -> str | None:
    """Return the revision of an address or of an option.

    Raises:
        UsageError: they differ.
    """
    if source.revision is None or asked in (None, source.revision):
        return source.revision if asked is None else asked
    raise UsageError(
        f"--revision {asked}, but the address names {source.revision}",
        where=source.name,
        fix="leave one of them out",
    )


def _refuse_path(words: str) -> None:
    if words.startswith((".", "/", "~")) or words.endswith((".lock", ".json")):
        raise UsageError(
            "no such file or directory",
            where=ascii(words)[1:-1][:100],
            fix="check the path; a repository of the Hub is written owner/name",
        )


def _read_endpoint_host() -> str:
    return (urlsplit(session.read_endpoint()).hostname or "").lower()


def _parse_path(path: str, words: str) -> HubSource:
    segments = [unquote(segment) for segment in path.split("/") if segment]
    is_dataset = segments[:1] == ["datasets"]
    type_: RepoType = "dataset" if is_dataset else "model"
    segments = segments[1:] if is_dataset or segments[:1] == ["models"] else segments
    page = next(
        (i for i, segment in enumerate(segments[1:3], 1) if segment in (*_REVISION_PAGES, *_PAGES)),
        min(2, len(segments)),
    )
    name, rest = "/".join(segments[:page]).removesuffix(".git"), segments[page:]
    if not lock.REPO.fullmatch(name) or segments[:1] in (["spaces"], ["collections"], ["papers"], ["docs"]):
        raise UsageError(
            "an address that names no model and no dataset",
            where=ascii(redact_secrets(words))[1:-1][:100],
            fix="pass owner/name",
        )
    revision = rest[1] if len(rest) > 1 and rest[0] in _REVISION_PAGES else None
    return HubSource(name, type_, revision)
