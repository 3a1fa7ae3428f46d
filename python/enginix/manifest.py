"""``enginix.json``: the description of an artefact, its inputs, its target and its runtime.

Every stage writes one and reads that of the stage before it. It holds nothing volatile: no time,
no host name, no user, no secret.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from enginix import __version__
from enginix.errors import ManifestError
from enginix.files import dump_json, write_text
from enginix.wording import with_article

MANIFEST_FILE = "enginix.json"
MANIFEST_FORMAT = 1

# Nix's base 32 has no e, o, t and u.
_STORE_HASH = re.compile(r"^[0-9abcdfghijklmnpqrsvwxyz]{32}-")

Artefact = Literal[
    "model",
    "dataset",
    "calibration",
    "quantized-model",
    "checkpoint",
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

    def write(self, directory: Path) -> None:
        """Write ``enginix.json`` into ``directory``."""
        write_text(directory / MANIFEST_FILE, dump_json({"format": MANIFEST_FORMAT, **asdict(self)}))


def read_manifest(directory: Path, artefact: Artefact | None = None) -> Manifest:
    """Read the manifest of ``directory``.

    Args:
        artefact: the one that the caller needs; any other is refused.

    Raises:
        ManifestError: missing, not JSON, of another format, with unknown keys, or of another artefact.
    """
    path = directory / MANIFEST_FILE
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise OSError("not a file")
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as e:
        raise ManifestError(
            f"no {MANIFEST_FILE}",
            where=str(directory),
            fix="pass the output of the enginix stage before this one",
        ) from e
    except (OSError, ValueError, RecursionError) as e:
        raise ManifestError(f"unreadable: {e}", where=str(path), fix="build this artefact again") from e
    if not isinstance(raw, dict) or raw.pop("format", None) != MANIFEST_FORMAT:
        raise ManifestError(
            f"not a manifest of format {MANIFEST_FORMAT}",
            where=str(path),
            fix="build this artefact again with this enginix",
        )
    fields = Manifest.__dataclass_fields__
    unknown = sorted(set(raw) - set(fields))
    if unknown or raw.get("artefact") not in get_args(Artefact) or not isinstance(raw.get("name"), str):
        raise ManifestError(
            f"unknown keys {unknown}" if unknown else "artefact or name is missing or wrong",
            where=str(path),
            fix="build this artefact again with this enginix",
        )
    for key in ("model", "inputs", "options", "target", "runtime", "tools", "results"):
        if not isinstance(raw.get(key, {}), dict):
            raise ManifestError(f"{key} is not an object", where=str(path), fix="build this artefact again")
    if not isinstance(raw.get("kind"), str | None):
        raise ManifestError("kind is not a text", where=str(path), fix="build this artefact again")
    manifest = Manifest(**raw)
    if artefact is not None and manifest.artefact != artefact:
        raise ManifestError(
            f"is {with_article(manifest.artefact)}, not {with_article(artefact)}",
            where=str(directory),
            fix=f"pass {with_article(artefact)}",
        )
    return manifest


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
    return _STORE_HASH.sub("", directory.resolve().name)
