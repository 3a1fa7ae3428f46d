"""Hugging Face model → checked ONNX export, by NVIDIA's exporter; a pure function of the model and the
wheel.

<export>/
  enginix.json     manifest: model, options, wheel, results of the checks
  llm/             output of tensorrt-edgellm-export
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from enginix import __version__, console, manifest, process
from enginix.digests import SourceWatch, digest_file
from enginix.errors import MachineError, UsageError
from enginix.kinds.edgellm import checks, graph, options, source
from enginix.kinds.edgellm.errors import ExportError, name_final_directory
from enginix.kinds.edgellm.execution import direct_graph, export_gate
from enginix.kinds.edgellm.source import ExportSource
from enginix.manifest import Manifest
from enginix.model.end_tokens import END_TOKENS_KEY, list_named_end_tokens, read_end_tokens
from enginix.model.identity import identify_model
from enginix.optional_libraries import missing_extra
from enginix.output_path import require_absent
from enginix.tables import load_table
from enginix.work_directory import new_directory

EXPORTER = "tensorrt-edgellm-export"
PINNED_PACKAGES = ("tensorrt-edgellm", "torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon")
# Of the weights' bytes: float16 of them, the table once more, the graph; of quantized ones those that the
# direct builder's graph has, beside the export until it is judged.
EXPORT_DISK_FACTOR, QUANTIZED_DISK_FACTOR = 1.2, 2.3
_DEVICE_FULL = ("No space left on device", "Errno 28", "SIGBUS")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours that PyTorch writes into its errors
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Exit)\b.*:")


def find_program(name: str, given: Path | None) -> Path:
    """Find a console script of the wheel.

    Raises:
        MachineError: the program is missing.
    """
    if given is not None:
        if not os.access(given, os.X_OK):
            raise MachineError("not a program", where=given)
        return Path(os.path.abspath(given))
    beside = Path(sys.executable).parent / name
    program = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if program is None:
        raise missing_extra("edgellm", f"{name} is not installed", "edgellm-export")
    return Path(program)


def make_private_environment(work: Path) -> dict[str, str]:
    """Return variables without the user's settings, without network access, and independent of the date."""
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


def explain_export_failure(status: int, output: str, model: Path, out: Path) -> Exception:
    """Return the error for a failed run of the exporter, which writes to ``out``."""
    if any(sign in output for sign in _DEVICE_FULL) or status == -7:
        return MachineError("the disk is full", where=out, fix="free disk space, or choose another -o")
    if status == -9:
        return MachineError(
            "the exporter was killed, as the kernel does when memory is short",
            where=model,
            fix="export on a machine with about twice the weights' size in memory, and 1 GB",
        )
    for row in load_table("edgellm")["failures"]:
        if row["pattern"] in output:
            return ExportError(row["what"], where=model, fix=row["fix"])
    lines = [line.strip() for line in _ESCAPES.sub("", output).splitlines() if line.strip()]
    error_line = next(
        (line for line in reversed(lines) if _ERROR.match(line)), lines[-1] if lines else "no output"
    )
    return ExportError(
        f"{EXPORTER} ended with status {status}: {error_line[:400]}",
        where=model,
        fix="docs/reference/edgellm.md lists what is known to export; if this model is among it, report the "
        "line above to github.com/NVIDIA/TensorRT-Edge-LLM",
    )


def _require_disk_space(model_source: ExportSource, out: Path) -> None:
    size = sum(t.nbytes for t in model_source.weights.tensors.values())
    free = shutil.disk_usage(out).free
    needed = size * (EXPORT_DISK_FACTOR if model_source.quantization is None else QUANTIZED_DISK_FACTOR)
    if free < needed:
        raise MachineError(
            f"the disk is full: {free >> 20} MiB free, the export needs about {int(needed) >> 20} MiB",
            where=out,
            fix="free disk space, or choose another -o",
        )


def read_model_identity(model: Path) -> dict[str, Any]:
    """Return the identity of a model, which its export, engine and server must share: its content.

    The texts that an export carries belong to it, also without a manifest that lists them.

    Raises:
        ManifestError: the model's files are not those of its manifest.
    """
    identity = dict(identify_model(model)["model"])
    texts = [path for path in sorted(model.iterdir()) if path.suffix in (".json", ".jinja")]
    digests = {path.name: digest_file(path).sha256 for path in texts if path.name != manifest.MANIFEST_FILE}
    return {**identity, "files": {**digests, **identity["files"]}}


def _list_tool_versions() -> dict[str, str]:
    versions = {"enginix": __version__}
    for name in PINNED_PACKAGES:
        try:
            versions[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return versions


def export_model(
    model: Path,
    out: Path,
    *,
    name: str | None = None,
    exporter: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Manifest:
    """Export a model; the directory is complete and checked, or absent.

    Args:
        name: name of the export; None takes the model's.
        exporter: the program; None takes the one beside this Python, or on PATH.
        flags: options of edgellm.json's section export.

    Raises:
        ModelError: the model is incomplete, damaged, of another architecture, or has no chat template.
        ExportError: the exporter or a check of its output failed.
        MachineError: the exporter is missing, or disk or memory are short.
    """
    require_absent(out)
    flags = options.check_stage_options("export", flags or {})
    model_source = source.read_export_source(model)
    if flags.get("fp8Embedding") and model_source.model.hidden_size % 16:
        raise UsageError("fp8Embedding needs a hidden size that is a multiple of 16", where=model)
    program = find_program(EXPORTER, exporter)
    watch, identity = SourceWatch(model), read_model_identity(model)
    with new_directory(out) as partial, name_final_directory(partial, out, "export"):
        _require_disk_space(model_source, partial)
        with (
            tempfile.TemporaryDirectory(prefix="enginix-export.") as work,
            tempfile.TemporaryDirectory(prefix=".direct.", dir=partial) as recorded,
        ):
            # The model answers while the exporter runs: both take seconds to import PyTorch.
            environment, engine = make_private_environment(Path(work) / "p"), Path(recorded) / "engine"
            with (
                export_gate.ask_model(model_source, Path(work), environment) as read_answers,
                direct_graph.start_recording(model, engine, environment) as finish_recording,
            ):
                _run_exporter(program, model, partial, options.format_stage_flags("export", flags))
                graph.strip_stack_traces(partial / "llm" / "model.onnx")
                results = checks.check_exported_model(
                    partial / "llm", model_source, fp8_embedding=bool(flags.get("fp8Embedding"))
                )
                exported_graph = graph.read_graph(partial / "llm" / "model.onnx")
                answers = read_answers()
                results["exportGate"] = export_gate.judge_export(
                    partial / "llm", exported_graph, model_source, answers
                )
                results["directGate"] = direct_graph.judge_direct_builder(
                    engine, finish_recording, model_source, answers
                )
        results["gates"] = {export_gate.NAME: "passed"}
        _tidy_export(partial, model)
        ends = list_named_end_tokens(model)
        if extra := sorted({*ends} - {*read_end_tokens(model)}):
            console.print_message(
                f"note: Edge-LLM also ends answers at {', '.join(map(str, extra))}, which config.json "
                "names and generation_config.json does not: transformers goes on there"
            )
        export_manifest = Manifest(
            artefact="export",
            name=name or manifest.read_artefact_name(model),
            kind="edgellm",
            model={
                "architecture": model_source.model.architecture,
                "layers": model_source.model.num_layers,
                "hiddenSize": model_source.model.hidden_size,
                "vocabSize": model_source.model.vocab_size,
                "quantization": model_source.quantization,
                "kvCacheQuantization": model_source.kv_cache,
                END_TOKENS_KEY: list(ends),
            },
            inputs={"model": identity},
            options=dict(flags),
            runtime={"id": f"edgellm-{load_table('edgellm')['version']}"},
            tools=_list_tool_versions(),
            results=results,
        )
        watch.require_unchanged()
        export_manifest = export_manifest.write(partial)
    return export_manifest


def _run_exporter(program: Path, model: Path, partial: Path, words: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="enginix-export.") as work:
        done = process.run_program(
            [program, *words, os.path.abspath(model), partial],
            env=make_private_environment(Path(work) / "p"),
            cwd=Path(work),
            check=False,
        )
    if done.returncode != 0:
        raise explain_export_failure(done.returncode, done.stdout + done.stderr, model, partial)


def _tidy_export(partial: Path, model: Path) -> None:
    """Make the files readable, and refuse the build's paths in them, which would keep the weights alive."""
    for path in sorted(partial.rglob("*")):
        if path.is_symlink():
            raise ExportError(f"the exporter left a link: {path.name}", where=partial)
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in sorted((partial / "llm").iterdir()):
        if path.suffix in (".json", ".jinja", ".onnx"):
            data = path.read_bytes()
            for trace in (os.path.abspath(model), str(partial)):
                if trace.encode() in data:
                    raise ExportError(f"{path.name} names the build's directory {trace}", where=partial)
