"""Whether an artefact still has the files that its manifest lists, and whether its inputs are those named.

Small files are read every time, weights if their size, inode or times changed (``enginix.digests``). Nothing
is read in a store of Nix, unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from enginix.console import format_bytes, print_message
from enginix.digests import ContentDigest, digest_directory, is_in_store, list_files
from enginix.errors import ManifestError
from enginix.files import dump_json, sha256_file
from enginix.manifest import MANIFEST_FILE, UNLISTED_FILES, Manifest, read_manifest, require_whole_manifest
from enginix.wording import count_noun

OLD_MANIFEST = "its manifest has no digests (format 1, of an earlier enginix): changed files go unnoticed"
_SHOWN = 5


@dataclass(frozen=True)
class CheckedArtefact:
    """An artefact whose files were compared with its manifest.

    Attributes:
        checked: files that were compared; 0 in a store of Nix.
        size: bytes of them.
        is_listed: the manifest has digests; False for one of an earlier enginix.
        is_stored: it lies in a store of Nix, whose hash covers it.
    """

    directory: Path
    manifest: Manifest
    checked: int
    size: int
    is_listed: bool
    is_stored: bool

    def text(self) -> str:
        """Return one line for people."""
        if self.checked:
            how = f"{count_noun(self.checked, 'file')} ({format_bytes(self.size)}) as its manifest lists"
        elif not self.is_listed:
            how = OLD_MANIFEST
        else:
            how = "in a store of Nix, whose hash covers it"
        return f"{self.manifest.artefact} {self.manifest.name} {self.directory}: {how}"


def compare_files(expected: Mapping[str, ContentDigest], found: Mapping[str, ContentDigest]) -> list[str]:
    """Return the differences between two lists of files, one line each."""
    lines = [f"{_escape_name(name)} is missing" for name in expected if name not in found]
    lines += [f"{_escape_name(name)} was added" for name in found if name not in expected]
    for name, digest in expected.items():
        if name in found and found[name] != digest:
            other = found[name]
            if digest.link is not None or other.link is not None:
                lines.append(f"{_escape_name(name)} is {_name_type(other)}, it was {_name_type(digest)}")
            else:
                lines.append(f"{_escape_name(name)} changed")
    return sorted(lines)


def _escape_name(name: str) -> str:
    """Return a stranger's name without control characters, which a terminal would obey."""
    return ascii(name)[1:-1][:200]


def _name_type(digest: ContentDigest) -> str:
    return "a file" if digest.link is None else f"a link to {_escape_name(digest.link)}"


def _list_sizes(directory: Path, expected: Mapping[str, ContentDigest]) -> dict[str, ContentDigest]:
    """Return what is known of a directory's files without reading: the listed ones of the listed size."""
    sizes = {}
    for name, path in list_files(directory):
        if name in UNLISTED_FILES:
            continue
        listed = expected.get(name, ContentDigest("", 0))
        is_other = listed.link is None and path.is_file() and path.stat().st_size != listed.size
        sizes[name] = ContentDigest("", path.stat().st_size) if is_other else listed
    return sizes


def _is_whole_in_store(directory: Path) -> bool:
    """Return whether an artefact and all that its links lead to lie in a store of Nix.

    The store's hash covers a link's text, not what it leads to.
    """
    return is_in_store(directory) and all(
        is_in_store(path) or not path.exists() for _, path in list_files(directory)
    )


def _find_contradictions(directory: Path, manifest: Manifest) -> list[str]:
    """Compare the list of files with what the artefact says of its inputs, one line for each difference.

    Those are the manifests of the artefacts that lie in it, and the model's texts.
    """
    listed = manifest.files or {}
    lines = []
    for folder in [name.removesuffix(MANIFEST_FILE) for name in listed if name.endswith(f"/{MANIFEST_FILE}")]:
        inner = require_whole_manifest(directory / folder).files
        below = {n.removeprefix(folder): digest for n, digest in listed.items() if n.startswith(folder)}
        below = {name: digest for name, digest in below.items() if name not in UNLISTED_FILES}
        lines += [] if inner is None else [f"{folder}{line}" for line in compare_files(inner, below)]
    model = manifest.inputs.get("model")
    texts = model.get("files") if isinstance(model, dict) else None
    for name, sha256 in texts.items() if isinstance(texts, dict) else ():
        if listed.get(f"tokenizer/{name}", ContentDigest(sha256, 0)).sha256 != sha256:
            lines.append(f"tokenizer/{_escape_name(name)} is not the model's")
    return lines


def check_artefact(directory: Path, *, full: bool = False, in_store: bool = False) -> CheckedArtefact:
    """Compare the files of an artefact with its manifest.

    Args:
        full: read weights again, and an artefact in a store of Nix, too.
        in_store: check an artefact in a store of Nix, too.

    Raises:
        ManifestError: no manifest, a changed one, or a file that was changed, added or removed.
    """
    is_stored = (directory / MANIFEST_FILE).exists() and _is_whole_in_store(directory)
    is_compared = full or in_store or not is_stored
    artefact_manifest = require_whole_manifest(directory) if is_compared else read_manifest(directory)
    expected = artefact_manifest.files
    if expected is None or not is_compared:
        return CheckedArtefact(directory, artefact_manifest, 0, 0, expected is not None, is_stored)
    # Before anything is read: an added file may be of any size.
    differences = compare_files(expected, _list_sizes(directory, expected))
    if not differences:
        content = digest_directory(directory, leave_out=UNLISTED_FILES, full=full)
        differences = compare_files(expected, content)
    if not differences:
        differences = _find_contradictions(directory, artefact_manifest)
    if differences:
        more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ManifestError(
            f"changed since it was made: {', '.join(differences[:_SHOWN])}{more}",
            where=directory,
            fix="restore it, or build it again; if the change is wanted, build it from changed inputs",
        )
    size = sum(digest.size for digest in expected.values())
    return CheckedArtefact(directory, artefact_manifest, len(expected), size, True, is_stored)


def require_unchanged(directory: Path) -> None:
    """Refuse an artefact that changed since it was made; tell of one that has no digests.

    A directory without a manifest is no artefact of enginix, and passes.

    Raises:
        ManifestError: a file was changed, added or removed.
    """
    if (directory / MANIFEST_FILE).exists() and not check_artefact(directory).is_listed:
        print_message(f"note: {directory}: {OLD_MANIFEST}; build it again")


def list_content(directory: Path, prefix: str = "") -> dict[str, ContentDigest]:
    """Return the digests of a checked artefact's files, below a prefix, for the manifest of another one that
    has them as they are.

    An artefact without digests has none.
    """
    if not (directory / MANIFEST_FILE).exists():
        return {}
    artefact_manifest = check_artefact(directory).manifest
    return {f"{prefix}{name}": digest for name, digest in (artefact_manifest.files or {}).items()}


def find_engine(paths: Iterable[Path]) -> Path | None:
    """Return the directory of the engine that holds one of these paths; None without one."""
    for path in paths:
        for directory in (path, *path.parents):
            if (directory / MANIFEST_FILE).is_file() and read_manifest(directory).artefact == "engine":
                return directory
    return None


def require_input(directory: Path, manifest: Manifest, name: str, source: Path) -> None:
    """Compare an input of an artefact with what its manifest names.

    Args:
        name: key of the manifest's inputs, whose ``manifestSha256`` is compared.
        source: directory of the input.

    Raises:
        ManifestError: it is another one, or was changed.
    """
    recorded = manifest.inputs.get(name)
    expected = recorded.get("manifestSha256") if isinstance(recorded, dict) else None
    if expected is not None and sha256_file(source / MANIFEST_FILE) != expected:
        raise ManifestError(
            f"was made from another {name} than {source}, or that one changed",
            where=directory,
            fix=f"make it again from this {name}, or restore that one",
        )


def require_same_results(directory: Path, manifest: Manifest, engine: Manifest) -> None:
    """Compare the verdicts and golden tokens of a repository with its engine's.

    Raises:
        ManifestError: they differ.
    """
    for key in ("gates", "golden"):
        if dump_json(manifest.results.get(key)) != dump_json(engine.results.get(key)):
            raise ManifestError(
                f"results.{key} is not that of its engine",
                where=directory,
                fix="make the repository again: enginix triton-repo",
            )
