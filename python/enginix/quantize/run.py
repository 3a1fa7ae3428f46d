"""From a model directory to a quantized one."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import __version__, manifest
from enginix.console import Heartbeat, human_bytes, say
from enginix.errors import UsageError
from enginix.files import check_free, new_directory, sha256_file
from enginix.model.tokenizer_files import TOKENIZER_FILES
from enginix.quantize import calibration, ptq, source, verify
from enginix.quantize.formats import Choice, check_shapes, kv_cache_warning
from enginix.quantize.stack import imported

# Carried along as they are: a server needs them, and a licence goes with the weights.
CARRIED = (*TOKENIZER_FILES, "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Options:
    """How to quantize.

    Attributes:
        batch_size: rows a forward pass.
        threads: of PyTorch on a CPU; None leaves its default.
        name: in the manifest; None for the directory's.
    """

    device: str = "cpu"
    batch_size: int = 8
    threads: int | None = None
    name: str | None = None


def quantize(
    directory: Path, out: Path, choice: Choice, data: Path | None, options: Options
) -> dict[str, Any]:
    """Writes a quantized model: the unified checkpoint, tokenizer and chat template, ``enginix.json``.

    ``out`` appears whole at the end, or not at all, and only after it was read back and held to the request.

    Returns:
        The manifest's ``results``.

    Raises:
        UsageError, ModelError, MachineError: as the modules of this room; everything that headers can tell
        is told
            before torch is imported.
    """
    check_free(out)
    model = source.read(directory)
    check_shapes(choice, model.matrices, model.experts, str(directory))
    calibrates = choice.kv_cache is not None or any(f.calibrates for f in choice.formats)
    if calibrates and data is None:
        raise UsageError(
            f"{choice.name} needs calibration data",
            fix=f"enginix calibrate {directory} -o ./calibration, then --calibration ./calibration",
        )
    rows = None if data is None else calibration.read(data)
    if rows is not None:
        source.check_calibration(model, rows, str(data))
    if options.batch_size < 1:
        raise UsageError(f"--batch-size {options.batch_size} is less than 1")
    source.check_machine(model, out, options.device)
    notes = list(choice.warnings)
    if choice.kv_cache is not None and (warning := kv_cache_warning(model.parameters)):
        notes.append(warning)
    for note in notes:
        say(f"warning: {note}")

    tools = ptq.versions()
    ptq.check_device(options.device)
    if options.threads is not None:
        _set_threads(options.threads)
    with new_directory(out) as partial:
        heartbeat = Heartbeat()
        say(f"loading {human_bytes(model.bytes)} on {options.device}")
        network = ptq.load(directory, options.device)
        batches = [] if rows is None else ptq.batches(rows.tokens, options.batch_size, options.device)
        say(f"quantizing {len(model.matrices)} matrices to {choice.name}")
        network = ptq.quantize(network, choice, batches, heartbeat)
        ptq.export(network, partial)
        _carry(directory, partial)
        matrices = verify.verify(partial, choice, model)
        results = _results(partial, model, matrices, notes)
        manifest.Manifest(
            artefact="quantized-model",
            name=options.name or directory.resolve().name,
            model={
                "architecture": model.architecture,
                "quantization": choice.algorithm,
                "kvCacheQuantization": choice.kv_algorithm,
            },
            inputs={
                "model": _identity(model),
                "calibration": None if rows is None else rows.identity(),
            },
            options={
                "format": choice.name,
                "candidates": [f.name for f in choice.formats] if choice.effective_bits is not None else None,
                "effectiveBits": choice.effective_bits,
                "kvCache": choice.kv_cache,
                "device": options.device.partition(":")[0],
                "batchSize": options.batch_size,
            },
            tools={"enginix": __version__, **tools},
            results=results,
        ).write(partial)
        for path in partial.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return results


def _identity(model: source.Model) -> dict[str, Any]:
    """The model's manifest, or digests of configuration and headers, as the converter has it.

    Not the converter's function: its code is no part of what a quantized model depends on.
    """
    if (model.directory / manifest.FILE).exists():
        found = manifest.read(model.directory)
        return {"artefact": found.artefact, "name": found.name, **found.inputs}
    files: dict[str, Any] = {"config.json": {"sha256": sha256_file(model.directory / "config.json")}}
    for header in model.weights.headers:
        digest = hashlib.sha256(header.raw).hexdigest()
        files[header.path.name] = {"headerSha256": digest, "size": header.path.stat().st_size}
    return {"files": files}


def _set_threads(count: int) -> None:
    if count < 1:
        raise UsageError(f"--threads {count} is less than 1")
    imported("torch").set_num_threads(count)


def _carry(directory: Path, partial: Path) -> None:
    for pattern in CARRIED:
        for path in sorted(directory.glob(pattern)):
            if path.is_file():
                there = partial / path.relative_to(directory)
                there.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, there)


def _results(
    partial: Path, model: source.Model, matrices: dict[str, int], notes: list[str]
) -> dict[str, Any]:
    written = sum(os.path.getsize(p) for p in partial.glob("*.safetensors"))
    return {
        "bytes": written,
        "parameters": model.parameters,
        "bitsPerWeight": round(written * 8 / model.parameters, 3),
        "matrices": matrices,
        "warnings": notes,
    }
