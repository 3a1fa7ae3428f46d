"""Turn a model directory into a quantized one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import __version__, manifest
from enginix.console import print_notes
from enginix.digests import SourceWatch
from enginix.errors import UsageError
from enginix.integrity import require_unchanged
from enginix.model.identity import identify_model
from enginix.model.tokenizer_files import TOKENIZER_FILES, copy_files, list_tokenizer_files
from enginix.output_path import require_absent
from enginix.progress import BYTES, track_step
from enginix.quantize import calibration, ptq, source, verify
from enginix.quantize.formats import FormatChoice, check_shapes, warn_of_kv_cache
from enginix.quantize.library_imports import import_library
from enginix.work_directory import new_directory

# Copied unchanged: a server needs them, and a licence goes with the weights.
CARRIED_FILES = (*TOKENIZER_FILES, "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of a quantization.

    Attributes:
        batch_size: rows a forward pass.
        threads: of PyTorch on a CPU; None leaves its default.
        name: the name in the manifest; None for the model's with the format: ``qwen3-0.6b-fp8``.
    """

    device: str = "cpu"
    batch_size: int = 8
    threads: int | None = None
    name: str | None = None


def quantize_model(
    directory: Path, out: Path, choice: FormatChoice, data: Path | None, options: QuantizeOptions
) -> dict[str, Any]:
    """Write a quantized model: the unified checkpoint, tokenizer and chat template, ``enginix.json``.

    ``out`` appears whole at the end, or not at all, and only after it was read back and verified.

    Returns:
        The manifest's ``results``.

    Raises:
        UsageError, ModelError, MachineError: as the modules of this package; all checks of headers run before
            torch is imported.
    """
    require_absent(out)
    watch = SourceWatch(directory, data)
    model = source.read_source_model(directory)
    check_shapes(choice, model.matrices, model.experts, str(directory))
    calibrates = choice.kv_cache is not None or any(f.calibrates for f in choice.formats)
    if calibrates and data is None:
        raise UsageError(
            f"{choice.name} needs calibration data",
            fix=f"enginix calibrate {directory} -o ./calibration, then --calibration ./calibration",
        )
    rows = None if data is None else calibration.read_calibration(data)
    if rows is not None:
        source.check_calibration(model, rows, str(data))
    if options.batch_size < 1:
        raise UsageError(f"--batch-size {options.batch_size} is less than 1")
    source.check_machine(model, out, options.device)
    notes = list(choice.warnings)
    if choice.kv_cache is not None and (warning := warn_of_kv_cache(model.parameters)):
        notes.append(warning)
    print_notes(notes, "warning")

    if data is not None and data.is_dir():
        require_unchanged(data)
    identity = identify_model(directory, model.weights)["model"]
    tools = ptq.read_library_versions()
    ptq.check_device(options.device)
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"--threads {options.threads} is less than 1")
        import_library("torch").set_num_threads(options.threads)
    with new_directory(out) as partial:
        with track_step("loading", model.bytes, BYTES) as progress:
            network = ptq.load_model(directory, options.device)
            progress.advance(model.bytes)
        batches = [] if rows is None else ptq.split_batches(rows.tokens, options.batch_size, options.device)
        with track_step(f"quantizing to {choice.name}"):
            network = ptq.insert_quantizers(network, choice, batches)
        with track_step("exporting"):
            ptq.export_checkpoint(network, partial)
        copy_files(list_tokenizer_files(directory, CARRIED_FILES), directory, partial)
        with track_step("checking the export"):
            matrices = verify.verify_export(partial, choice, model)
        results = _collect_results(partial, model, matrices, notes)
        watch.require_unchanged()
        manifest.Manifest(
            artefact="quantized-model",
            name=options.name or f"{manifest.read_artefact_name(directory)}-{choice.name.replace('_', '-')}",
            model={
                "architecture": model.architecture,
                "quantization": choice.algorithm,
                "kvCacheQuantization": choice.kv_algorithm,
            },
            inputs={"model": identity, "calibration": None if rows is None else rows.identity()},
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


def _collect_results(
    partial: Path, model: source.SourceModel, matrices: dict[str, int], notes: list[str]
) -> dict[str, Any]:
    written_bytes = sum(os.path.getsize(p) for p in partial.glob("*.safetensors"))
    return {
        "bytes": written_bytes,
        "parameters": model.parameters,
        "bitsPerWeight": round(written_bytes * 8 / model.parameters, 3),
        "matrices": matrices,
        "warnings": notes,
    }
