"""An artefact and what it was made from, as far as it is on this machine, compared with the manifests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginix.errors import ManifestError, UsageError
from enginix.files import sha256_file
from enginix.integrity import (
    OLD_MANIFEST,
    CheckedArtefact,
    check_artefact,
    require_input,
    require_same_results,
)
from enginix.manifest import MANIFEST_FILE, Manifest, read_manifest
from enginix.model.identity import identify_model, require_same_model

_MODELS = ("model", "quantized-model")


def verify_chain(
    directory: Path, sources: Sequence[Path] = (), *, full: bool = False, in_store: bool = False
) -> list[CheckedArtefact]:
    """Check an artefact, and the inputs that lie in it, that it names, or that are given.

    Args:
        sources: directories of further inputs: the model, the checkpoint, the export, the calibration.
        full: read all weights again, and artefacts in a store of Nix, too.
        in_store: check artefacts in a store of Nix, too.

    Returns:
        Every artefact that was checked, the first one first.

    Raises:
        ManifestError: something changed, is no input of the artefact, or has no digests.
        UsageError: a source that is no input of any of them.
    """
    checked: dict[Path, CheckedArtefact] = {}
    _verify(Path(os.path.abspath(directory)), checked, full=full, in_store=in_store)
    for source in sources:
        _verify_source(Path(os.path.abspath(source)), checked, full=full, in_store=in_store)
    for artefact in checked.values():
        if not artefact.is_listed:
            raise ManifestError(
                OLD_MANIFEST,
                where=artefact.directory,
                fix="build it again with this enginix; until then only its inputs can be compared",
            )
    return list(checked.values())


def _verify(directory: Path, checked: dict[Path, CheckedArtefact], *, full: bool, in_store: bool) -> None:
    real = Path(os.path.realpath(directory))
    if real in checked:
        return
    checked[real] = check_artefact(directory, full=full, in_store=in_store)
    for name, source in _find_inputs(directory, checked[real].manifest):
        _require_made_from(directory, checked[real].manifest, name, source)
        _verify(source, checked, full=full, in_store=in_store)


def _find_inputs(directory: Path, manifest: Manifest) -> Iterator[tuple[str, Path]]:
    """Yield the inputs that an artefact holds or names, by their keys in its manifest."""
    if manifest.artefact == "triton-repository":
        from enginix.serve.preflight import find_repository_engine

        if (engine := find_repository_engine(directory, manifest)) is not None:
            yield "engine", engine
        return
    for name in ("checkpoint", "model"):
        if (directory / name / MANIFEST_FILE).is_file():
            yield name, directory / name
    if isinstance(manifest.inputs.get("engine"), dict):
        # A gated engine has links to the files of the engine that was gated.
        targets = [Path(os.readlink(p)).parent for p in sorted(directory.iterdir()) if p.is_symlink()]
        if targets and (targets[0] / MANIFEST_FILE).is_file():
            yield "engine", targets[0]


def _require_made_from(directory: Path, manifest: Manifest, name: str, source: Path) -> None:
    if name == "model":
        require_same_model(
            manifest.inputs.get("model"), identify_model(source)["model"], directory, manifest.artefact
        )
        return
    require_input(directory, manifest, name, source)
    if manifest.artefact == "triton-repository":
        require_same_results(directory, manifest, read_manifest(source, "engine"))


def _verify_source(source: Path, checked: dict[Path, CheckedArtefact], *, full: bool, in_store: bool) -> None:
    """Check an input that was given, and that one of the artefacts was made from it."""
    artefact = read_manifest(source).artefact if (source / MANIFEST_FILE).exists() else "model"
    name = "model" if artefact in _MODELS else artefact
    users = [a for a in checked.values() if _names_input(a.manifest, name, source)]
    if not users:
        raise UsageError(
            f"no input of {', '.join(sorted({a.manifest.artefact for a in checked.values()}))}",
            where=source,
            fix="pass with --from what the artefact was made from",
        )
    for user in users:
        _require_made_from(user.directory, user.manifest, name, source)
    if (source / MANIFEST_FILE).exists():
        _verify(source, checked, full=full, in_store=in_store)


def _names_input(manifest: Manifest, name: str, source: Path) -> bool:
    recorded = manifest.inputs.get(name)
    if name == "calibration":
        files = sorted(source.glob("*.safetensors"))
        return isinstance(recorded, dict) and any(sha256_file(f) == recorded.get("sha256") for f in files)
    return isinstance(recorded, dict) and (name == "model" or "manifestSha256" in recorded)
