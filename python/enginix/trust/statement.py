"""An artefact's manifest as an in-toto statement with SLSA provenance, for tools that read these.

https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance. It is a function of the manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginix.errors import ManifestError
from enginix.files import dump_json, sha256_file
from enginix.manifest import MANIFEST_FILE, STATEMENT_FILE, Manifest, read_manifest

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://github.com/enginix/enginix/manifest/v2"
BUILDER = "https://github.com/enginix/enginix"


def make_statement(directory: Path) -> dict[str, Any]:
    """Return the statement: subjects are the manifest and the files, dependencies the named inputs."""
    manifest = read_manifest(directory)
    subjects = [{"name": MANIFEST_FILE, "digest": {"sha256": sha256_file(directory / MANIFEST_FILE)}}]
    subjects += [
        {"name": name, "digest": {"sha256": digest.sha256}}
        for name, digest in (manifest.files or {}).items()
        if digest.link is None
    ]
    parameters = {
        "artefact": manifest.artefact,
        "name": manifest.name,
        "kind": manifest.kind,
        "options": manifest.options,
        "target": manifest.target,
        "runtime": manifest.runtime,
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": parameters,
                "resolvedDependencies": _list_dependencies(manifest),
            },
            "runDetails": {"builder": {"id": BUILDER, "version": manifest.tools}},
        },
    }


def _list_dependencies(manifest: Manifest) -> list[dict[str, Any]]:
    dependencies = []
    for name, recorded in sorted(manifest.inputs.items()):
        if not isinstance(recorded, dict):
            continue
        for key in ("manifestSha256", "sha256"):
            if isinstance(recorded.get(key), str):
                dependencies.append({"name": name, "digest": {"sha256": recorded[key]}})
        files = recorded.get("files")
        for path, digest in sorted(files.items()) if isinstance(files, dict) else ():
            if isinstance(digest, str):
                dependencies.append({"name": f"{name}/{path}", "digest": {"sha256": digest}})
    return dependencies


def dump_statement(directory: Path) -> str:
    return dump_json(make_statement(directory))


def require_same_statement(directory: Path, beside: Path) -> None:
    """Refuse a statement that is not that of the manifest; without a statement there is nothing to refuse.

    Raises:
        ManifestError: it differs.
    """
    path = beside / STATEMENT_FILE
    if path.is_file() and path.read_bytes() != dump_statement(directory).encode():
        raise ManifestError(
            "is not the statement of this manifest", where=path, fix="enginix sign writes it again"
        )
