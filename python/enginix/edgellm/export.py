"""Hugging Face model → checked ONNX export, by NVIDIA's exporter; a pure function of the model and the
wheel.

<export>/
  enginix.json     manifest: from what, with which options and wheel, what the checks found
  llm/             what tensorrt-edgellm-export wrote
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from enginix import __version__, manifest, process
from enginix.edgellm import checks, clean, options, source
from enginix.edgellm.errors import ExportError
from enginix.edgellm.source import Source
from enginix.errors import MachineError, UsageError
from enginix.files import check_free, new_directory, sha256_file
from enginix.manifest import Manifest
from enginix.optional_libraries import missing_extra
from enginix.tables import table

EXPORTER = "tensorrt-edgellm-export"
PINNED = ("tensorrt-edgellm", "torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon")
ROOM = 1.2  # of the weights' bytes: float16 of them, the table once more, the graph
_DEVICE_FULL = ("No space left on device", "Errno 28", "SIGBUS")
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Exit)\b.*:")


@dataclass(frozen=True)
class Options:
    """How a model is exported.

    Attributes:
        name: of the export; None takes the model's.
        exporter: the program; None takes the one beside this Python, or on PATH.
        flags: options of edgellm.json's section export.
    """

    name: str | None = None
    exporter: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)


def find_program(name: str, given: Path | None) -> Path:
    """A console script of the wheel.

    Raises:
        MachineError: not there.
    """
    if given is not None:
        if not os.access(given, os.X_OK):
            raise MachineError("not a program", where=str(given))
        return Path(os.path.abspath(given))
    beside = Path(sys.executable).parent / name
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise missing_extra("edgellm", f"{name} is not installed", "edgellm-export")
    return Path(found)


def private_environment(work: Path) -> dict[str, str]:
    """Nothing of the user's, no network, nothing that depends on the day."""
    home = work / "home"
    home.mkdir(parents=True)
    return {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(work),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "LC_ALL": "C.UTF-8",
    }


def explain(status: int, output: str, model: Path) -> Exception:
    """The one error that a failed run of the exporter means."""
    if any(sign in output for sign in _DEVICE_FULL) or status == -7:
        return MachineError("the disk is full", where=str(model), fix="free disk space, or choose another -o")
    if status == -9:
        return MachineError(
            "the exporter was killed, as the kernel does when memory is short",
            where=str(model),
            fix="export on a machine with about twice the weights' size in memory, and 1 GB",
        )
    for row in table("edgellm")["failures"]:
        if row["pattern"] in output:
            return ExportError(row["what"], where=str(model), fix=row["fix"])
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1] if lines else "no output")
    return ExportError(
        f"{EXPORTER} ended with status {status}: {said[:400]}",
        where=str(model),
        fix="enginix inspect tells what the model is; docs/edgellm.md lists what is known to export",
    )


def _refuse_little_room(found: Source, out: Path) -> None:
    size = sum(t.nbytes for t in found.weights.tensors.values())
    free = shutil.disk_usage(out).free
    if free < size * ROOM:
        raise MachineError(
            f"the disk is full: {free >> 20} MiB free, the export needs about {int(size * ROOM) >> 20} MiB",
            where=str(out),
            fix="free disk space, or choose another -o",
        )


def identity_of(model: Path) -> dict[str, Any]:
    """What an export, its engine and its server must have in common: repository and commit where a manifest
    tells them, else digests of all files.
    """
    if (model / manifest.FILE).exists():
        given = manifest.read(model)
        if {"repo", "revision"} <= set(given.inputs):
            return {"repo": given.inputs["repo"], "revision": given.inputs["revision"]}
    names = sorted(p.name for p in model.iterdir() if p.suffix in (".json", ".safetensors", ".jinja"))
    return {"files": {name: sha256_file(model / name) for name in names if name != manifest.FILE}}


def _tools() -> dict[str, str]:
    found = {"enginix": __version__}
    for name in PINNED:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def export(model: Path, out: Path, wanted: Options | None = None) -> Manifest:
    """Exports a model; the directory is whole and checked, or absent.

    Raises:
        ModelError: the model is incomplete, damaged, of another architecture, or has no chat template.
        ExportError: the exporter failed, or a check on what it wrote.
        MachineError: no exporter, no disk, no memory.
    """
    check_free(out)
    wanted = wanted or Options()
    flags = options.checked("export", wanted.flags)
    found = source.read(model)
    if flags.get("fp8Embedding") and found.config["hidden_size"] % 16:
        raise UsageError("fp8Embedding needs a hidden size of whole sixteens", where=str(model))
    program = find_program(EXPORTER, wanted.exporter)
    identity = identity_of(model)
    with new_directory(out) as partial:
        _refuse_little_room(found, partial)
        _run(program, model, partial, options.words("export", flags))
        clean.stack_traces(partial / "llm" / "model.onnx")
        results = checks.check(partial / "llm", found, fp8_embedding=bool(flags.get("fp8Embedding")))
        _tidy(partial, model)
        described = Manifest(
            artefact="export",
            name=wanted.name or manifest.name_of(model),
            kind="edgellm",
            model={
                "architecture": found.config["architectures"][0],
                "layers": found.layers,
                "hiddenSize": found.config["hidden_size"],
                "vocabSize": found.config["vocab_size"],
                "quantization": found.quantization,
                "kvCacheQuantization": found.kv_cache,
            },
            inputs={"model": identity},
            options=dict(flags),
            runtime={"id": f"edgellm-{table('edgellm')['version']}"},
            tools=_tools(),
            results=results,
        )
        described.write(partial)
    return described


def _run(program: Path, model: Path, partial: Path, words: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="enginix-export.") as work:
        done = process.run(
            [program, *words, os.path.abspath(model), partial],
            env=private_environment(Path(work) / "p"),
            cwd=Path(work),
            check=False,
        )
    if done.returncode != 0:
        raise explain(done.returncode, done.stdout + done.stderr, model)


def _tidy(partial: Path, model: Path) -> None:
    """Plain readable files without a trace of where they were made, which would keep the weights alive."""
    for path in sorted(partial.rglob("*")):
        if path.is_symlink():
            raise ExportError(f"the exporter left a link: {path.name}", where=str(partial))
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in sorted((partial / "llm").iterdir()):
        if path.suffix in (".json", ".jinja", ".onnx"):
            data = path.read_bytes()
            for trace in (os.path.abspath(model), str(partial)):
                if trace.encode() in data:
                    raise ExportError(f"{path.name} names the build's directory {trace}", where=str(partial))
