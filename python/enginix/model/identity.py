"""The identity of a model, for the manifests of artefacts that are made from it: its content."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.digests import digest_file
from enginix.errors import ManifestError, ModelError
from enginix.files import sha256_json
from enginix.integrity import list_content
from enginix.model.safetensors import ModelWeights, open_weights
from enginix.model.tokenizer_files import VOCABULARY_FILES, is_tokenizer_file, list_tokenizer_files

_CONFIG_FILES = ("config.json", "hf_quant_config.json", "model.safetensors.index.json")
_SHOWN = 3


def identify_model(directory: Path, weights: ModelWeights | None = None) -> dict[str, Any]:
    """Return a model's identity as ``{"model": …}``: its manifest's inputs, and the SHA-256 of its files.

    Without a manifest that lists them, the files are configuration, tokenizer and weights. Weights are read,
    if nothing has their digest: a store of Nix with a manifest, or the cache.

    Raises:
        ManifestError: the model's files are not those of its manifest, or change while they are read.
    """
    named: dict[str, Any] = {}
    if (directory / manifest.MANIFEST_FILE).exists():
        source_manifest = manifest.read_manifest(directory)
        named = {"artefact": source_manifest.artefact, "name": source_manifest.name, **source_manifest.inputs}
    files = {name: digest.sha256 for name, digest in list_content(directory).items()}
    if not files:
        files = _digest_model_files(directory, weights)
        pinned = named.get("files")
        if isinstance(pinned, dict):
            _require_pinned_files(directory, pinned, files)
            files = {**pinned, **files}
    return {"model": {**named, "files": files}}


def _digest_model_files(directory: Path, weights: ModelWeights | None) -> dict[str, str]:
    paths = [*(directory / name for name in _CONFIG_FILES), *list_tokenizer_files(directory)]
    # An engine of a checkpoint takes its tokenizer from a model that may lack weights.
    with suppress(ModelError):
        paths += [header.path for header in (weights or open_weights(directory)).headers]
    return {
        path.relative_to(directory).as_posix(): digest_file(path).sha256
        for path in sorted(paths)
        if path.exists()
    }


def _require_pinned_files(directory: Path, pinned: dict[str, Any], files: dict[str, str]) -> None:
    for name, digest in files.items():
        if pinned.get(name, digest) != digest:
            raise ManifestError(
                f"changed since it was fetched: {name}", where=directory, fix="fetch it again"
            )


def list_differences(files: dict[str, Any], other_files: dict[str, Any]) -> list[str]:
    """Return the names of files that differ between two models: of those that both list, and of those that
    both must list.

    That is configuration and weights, and tokenizer files where both have a vocabulary.
    """
    listed = (*files, *other_files)
    needed = {n for n in listed if n in _CONFIG_FILES or n.endswith(".safetensors")}
    if not needed:
        return sorted(listed)
    if all(any(name in each for name in VOCABULARY_FILES) for each in (files, other_files)):
        needed |= {n for n in listed if is_tokenizer_file(n)}
    names = (files.keys() & other_files.keys()) | needed
    return sorted(n for n in names if files.get(n, 0) != other_files.get(n, 1))


def is_same_model(first: Any, second: Any) -> bool:
    """Return whether two identities are of one content (:func:`list_differences`)."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return False
    files, other_files = first.get("files"), second.get("files")
    if not isinstance(files, dict) or not isinstance(other_files, dict):
        return first == second
    return bool(files or other_files) and not list_differences(files, other_files)


def require_same_model(recorded: Any, identity: dict[str, Any], where: Path, artefact: str) -> None:
    """Refuse a model that an artefact was not made from.

    Args:
        recorded: identity of the model that the artefact's manifest names; None where it names none.
        artefact: what was made from it, such as ``checkpoint``.

    Raises:
        ManifestError: it is another model, or the manifest identifies models by their headers.
    """
    if recorded is None or is_same_model(recorded, identity):
        return
    files = recorded.get("files") if isinstance(recorded, dict) else None
    if isinstance(files, dict) and any(isinstance(entry, dict) for entry in files.values()):
        raise ManifestError(
            f"the {artefact} was made by an earlier enginix, which did not record its model's weights",
            where=where,
            fix=f"make the {artefact} again from this model",
        )
    different = list_differences(files, identity.get("files", {}))[:_SHOWN] if isinstance(files, dict) else []
    raise ManifestError(
        f"the {artefact} was made from {format_identity(recorded)}, but the model is "
        f"{format_identity(identity)}" + (f"; different: {', '.join(different)}" if different else ""),
        where=where,
        fix=f"pass the model that the {artefact} was made from, or make it from this one",
    )


def format_identity(identity: Any) -> str:
    """Return a model's identity for people."""
    files = identity.get("files") if isinstance(identity, dict) else None
    digest = sha256_json(files if isinstance(files, dict) else identity)[:12]
    if isinstance(identity, dict) and isinstance(identity.get("repo"), str):
        return f"{identity['repo']} at {identity.get('revision')} (content {digest})"
    return f"a model with digest {digest}"
