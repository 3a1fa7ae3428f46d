"""``enginix.json``: the description of an artefact, its inputs, its target and its runtime.

Every stage writes one and reads that of the stage before it. It holds nothing volatile: no time,
no host name, no user, no secret.

Since format 2 it has the digest of each file of the artefact (``files``), and of itself (``digest``: SHA-256
of its own bytes with zeros in the digest's place). Manifests of format 1, which have neither, are still read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from enginix import __version__
from enginix.digests import STORE_NAME, ContentDigest, digest_directory, parse_digests
from enginix.errors import ManifestError
from enginix.files import dump_json, write_text
from enginix.wording import with_article

MANIFEST_FILE = "enginix.json"
MANIFEST_FORMAT = 2
NOT_VERIFIED = "not verified by enginix"
# Without digests.
OLD_FORMAT = 1
# Written by `enginix sign` beside the manifest; no part of what it describes.
SIGNATURE_FILE = f"{MANIFEST_FILE}.sig"
STATEMENT_FILE = "enginix.intoto.json"
UNLISTED_FILES = (MANIFEST_FILE, SIGNATURE_FILE, STATEMENT_FILE)
LARGEST_MANIFEST = 64 << 20  # bytes
_NO_DIGEST = "0" * 64

Artefact = Literal[
    "model",
    "dataset",
    "calibration",
    "quantized-model",
    "checkpoint",
    "answers",
    "export",
    "engine",
    "triton-repository",
]


@dataclass(frozen=True)
class Manifest:
    """One artefact's description.

    Attributes:
        artefact: the stage that made it.
        name: its name for people, for instance ``tiny-qwen3``.
        kind: of engines and their repositories: ``tensorrt``, ``llmapi``, ``edgellm``, ``reference``.
        model: architecture, sizes and quantization, as far as the stage knows them.
        inputs: digest and identity of each input, for instance ``{"model": {"repo":…, "revision":…}}``.
        options: every option that shaped the artefact.
        target: the GPU that it is for; empty where it runs anywhere.
        runtime: the software that must execute it; empty where any does.
        tools: name → version of the software that made it.
        results: measurements and checks made while it was built, for instance gate results.
        files: digest of each file by relative name, but for the manifest and its signature; None in
            manifests of format 1, which have none.
    """

    artefact: Artefact
    name: str
    kind: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=lambda: {"enginix": __version__})
    results: dict[str, Any] = field(default_factory=dict)
    files: dict[str, ContentDigest] | None = None

    def write(self, directory: Path, known: Mapping[str, ContentDigest] | None = None) -> Manifest:
        """Write ``enginix.json`` into a directory that has all other files already.

        Args:
            known: digests of files that need not be read again.

        Returns:
            The manifest with the digests of the files.

        Raises:
            ManifestError: something in the directory is no file, or changes while it is read.
        """
        described = replace(self, files=digest_directory(directory, leave_out=UNLISTED_FILES, known=known))
        write_text(directory / MANIFEST_FILE, described.dump())
        return described

    def dump(self) -> str:
        """Return the text of ``enginix.json``."""
        import hashlib

        value = {"format": MANIFEST_FORMAT, "digest": _NO_DIGEST, **asdict(self)}
        value["files"] = {path: digest.as_json() for path, digest in (self.files or {}).items()}
        text = dump_json(value)
        # Nothing before it in the sorted keys can hold these characters: "artefact" has a known value.
        key = f'"digest": "{_NO_DIGEST}"'
        return text.replace(key, f'"digest": "{hashlib.sha256(text.encode()).hexdigest()}"', 1)


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's entries; of two with one key, readers differ in which counts."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice in an object")
    return values


def read_manifest(directory: Path, artefact: Artefact | None = None) -> Manifest:
    """Read the manifest of ``directory``; :func:`require_whole_manifest` notices a change of it.

    Args:
        artefact: the one that the caller needs; any other is refused.

    Raises:
        ManifestError: missing, not JSON, of another format, with unknown keys, or of another artefact.
    """
    return _parse_manifest(_read_manifest_file(directory / MANIFEST_FILE), directory, artefact)


def _parse_manifest(content: bytes, directory: Path, artefact: Artefact | None) -> Manifest:
    path = directory / MANIFEST_FILE
    try:
        raw = json.loads(content.decode("utf-8"), object_pairs_hook=_refuse_repeated_keys)
    except (ValueError, RecursionError) as e:
        raise ManifestError(f"unreadable: {e}", where=str(path), fix="build this artefact again") from e
    format_ = raw.pop("format", None) if isinstance(raw, dict) else None
    if type(format_) is not int or format_ not in (OLD_FORMAT, MANIFEST_FORMAT):
        raise ManifestError(
            f"not a manifest of format {MANIFEST_FORMAT}",
            where=str(path),
            fix="build this artefact again with this enginix",
        )
    if format_ == MANIFEST_FORMAT and not isinstance(raw.pop("digest", None), str):
        raise ManifestError("digest is not a text", where=str(path), fix="build this artefact again")
    fields = set(Manifest.__dataclass_fields__) - ({"files"} if format_ == OLD_FORMAT else set())
    unknown = sorted(set(raw) - fields)
    if unknown or raw.get("artefact") not in get_args(Artefact) or not isinstance(raw.get("name"), str):
        raise ManifestError(
            f"unknown keys {ascii(unknown)[:200]}" if unknown else "artefact or name is missing or wrong",
            where=str(path),
            fix="build this artefact again with this enginix",
        )
    for key in ("model", "inputs", "options", "target", "runtime", "tools", "results"):
        if not isinstance(raw.get(key, {}), dict):
            raise ManifestError(f"{key} is not an object", where=str(path), fix="build this artefact again")
    if not isinstance(raw.get("kind"), str | None):
        raise ManifestError("kind is not a text", where=str(path), fix="build this artefact again")
    if format_ == MANIFEST_FORMAT:
        try:
            raw["files"] = parse_digests(raw.get("files"))
        except ValueError as e:
            raise ManifestError(str(e), where=str(path), fix="build this artefact again") from e
    manifest = Manifest(**raw)
    if artefact is not None and manifest.artefact != artefact:
        raise ManifestError(
            f"is {with_article(manifest.artefact)}, not {with_article(artefact)}",
            where=str(directory),
            fix=f"pass {with_article(artefact)}",
        )
    return manifest


def _read_manifest_file(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise OSError("not a file")
        if path.stat().st_size > LARGEST_MANIFEST:
            raise OSError(f"larger than {LARGEST_MANIFEST} bytes")
        return path.read_bytes()
    except FileNotFoundError as e:
        raise ManifestError(
            f"no {MANIFEST_FILE}",
            where=str(path.parent),
            fix="pass the output of the enginix stage before this one",
        ) from e
    except OSError as e:
        raise ManifestError(f"unreadable: {e}", where=str(path), fix="build this artefact again") from e


def require_whole_manifest(directory: Path) -> Manifest:
    """Read a manifest, and refuse one that was changed after it was written.

    The file is read once: what is returned is what was compared. One of format 1 has no digest to compare.

    Raises:
        ManifestError: as :func:`read_manifest`; its digest differs.
    """
    import hashlib

    path = directory / MANIFEST_FILE
    content = _read_manifest_file(path)
    manifest = _parse_manifest(content, directory, None)
    if manifest.files is None:
        return manifest
    digest: str = json.loads(content)["digest"]
    zeroed = (
        content.replace(digest.encode("ascii"), _NO_DIGEST.encode())
        if digest.isascii() and len(digest) == len(_NO_DIGEST)
        else b""
    )
    if hashlib.sha256(zeroed).hexdigest() != digest:
        raise ManifestError(
            "changed after it was written: its digest differs",
            where=str(path),
            fix="restore it, or build this artefact again",
        )
    return manifest


@dataclass(frozen=True)
class GoldenAnswer:
    """A prefix and its greedy continuation by the engine, recorded when the engine was built."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


def read_golden(repository: Manifest) -> GoldenAnswer | None:
    """Read ``results.golden`` (``promptTokens`` and ``tokens``) of a manifest; None if it is absent."""
    recorded = repository.results.get("golden")
    if not isinstance(recorded, dict):
        return None
    prompt, tokens = recorded.get("promptTokens"), recorded.get("tokens")
    if not (_is_token_list(prompt) and _is_token_list(tokens)):
        return None
    assert isinstance(prompt, list) and isinstance(tokens, list)
    return GoldenAnswer(tuple(prompt), tuple(tokens))


def _is_token_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) is int and v >= 0 for v in value)


def explain_unverified(manifest: Manifest) -> str | None:
    """Return the warning of a runtime that its user describes; None for one of the table, and for none."""
    if manifest.runtime.get("verified", True) is not False:
        return None
    runtime = manifest.runtime
    return (
        f"runtime {runtime.get('id')} is {NOT_VERIFIED}: its user describes it, like {runtime.get('like')}, "
        f"image {runtime.get('image')}"
    )


def explain_ungated(manifest: Manifest) -> str | None:
    """Return the warning of a server whose engine was not gated; None where every gate passed."""
    gates = manifest.results.get("gates")
    if not isinstance(gates, dict) or not gates:
        return "not gated: the engine's answers were not compared with the model's"
    engine_gates = {
        gate: verdict for gate, verdict in gates.items() if gate not in ("checkpoint", "manifestSha256")
    }
    if not engine_gates and isinstance(gates.get("checkpoint"), dict):
        return "not gated: the checkpoint was compared with the model, the engine was not"
    failed = sorted(gate for gate, verdict in engine_gates.items() if verdict != "passed")
    if engine_gates and not failed:
        return None
    return f"gate {failed[0]} did not pass" if failed else "not gated: the engine's manifest names no gate"


def read_artefact_name(directory: Path) -> str:
    """Return the name of the artefact in ``directory``: its manifest's, or the directory's own.

    The hash of a store path is cut off: in a manifest it would be a reference, which keeps that path, for
    instance a whole model, in the closure of every artefact made from it.
    """
    if (directory / MANIFEST_FILE).exists():
        return read_manifest(directory).name
    return STORE_NAME.sub("", directory.resolve().name)
