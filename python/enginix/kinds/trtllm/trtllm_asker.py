"""Ask an engine of kind ``tensorrt`` or ``llmapi`` inside its runtime, on its GPU.

The answers are written to said.json and said.safetensors, which
enginix.evaluation.engine_judgement.answer_record reads.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import console, manifest
from enginix.errors import GateError, ManifestError
from enginix.evaluation.engine_protocol import answers_origin, engine_questions
from enginix.files import read_json_object
from enginix.machine import driver as drivers
from enginix.machine.target import find_target
from enginix.manifest import Manifest
from enginix.runtime import preflight, table
from enginix.runtime.failures import explain_build_failure
from enginix.runtime.sandbox import Bind, Sandbox, make_read_binds
from enginix.runtime.supervise import Watch, supervise_command
from enginix.tables import load_table
from enginix.work_directory import new_directory

SCRIPT = Path(__file__).with_name("trtllm_script.py")
KINDS = tuple(name for name, row in load_table("engine_kinds")["kinds"].items() if row["runsInImage"])
ANSWERS_FILE, TENSORS = "said.json", "said.safetensors"
NO_CONTEXT_LOGITS = (
    "the engine was built without gatherContextLogits, so its runtime scores no text "
    "(mkEngine { plugins.gatherContextLogits = true; }, or --plugin gather-context-logits=true)"
)


@dataclass(frozen=True)
class TrtllmAskOptions:
    """Options for asking an engine.

    Attributes:
        rootfs: the runtime's root file system; None uses this machine's own, as in a container of the image.
        driver: the GPU driver's root; None searches for it.
        pin: the runtime's pin, with the image's environment.
        stall: seconds without a sign after which the engine counts as hung.
        accept_driver: accept a driver older than the runtime requires.
    """

    rootfs: Path | None = None
    driver: Path | None = None
    pin: Path | None = None
    stall: float = 1800.0
    accept_driver: bool = False


def ask_trtllm_engine(engine: Path, questions_file: Path, out: Path, options: TrtllmAskOptions) -> None:
    """Ask an engine all questions; ``out`` is complete at the end, or absent.

    Args:
        questions_file: asked.json, or its directory.

    Raises:
        ManifestError: not an engine of these kinds.
        MachineError: this machine lacks something that the engine needs: GPU, driver, runtime, user
            namespaces.
        BuildError: the runtime failed or hung; has the cause if known.
        GateError: the runtime ended without answers.
    """
    engine_manifest = manifest.read_manifest(engine, "engine")
    if engine_manifest.kind not in KINDS:
        raise ManifestError(
            f"an engine of kind {engine_manifest.kind}",
            where=str(engine),
            fix=f"pass one of kind {' or '.join(KINDS)}",
        )
    if questions_file.is_dir():
        questions_file /= engine_questions.FILE
    questions_file = Path(os.path.realpath(questions_file))
    engine_questions.read_engine_questions(questions_file)
    runtime = table.find_runtime(engine_manifest.runtime, engine_manifest.kind, options.pin)
    engine_request = _build_request(engine, engine_manifest)
    ranks = math.prod(_read_ranks(engine, engine_manifest))
    driver = drivers.find_driver(options.driver)
    machine = preflight.require_machine(runtime, options.rootfs, driver, accept_driver=options.accept_driver)
    visible: dict[str, str] = {}
    if engine_manifest.target.get("name"):
        weights = sum(p.stat().st_size for p in (engine / "engine").glob("*.engine")) // ranks
        built_for = find_target(str(engine_manifest.target["name"]))
        preflight.check_gpu(built_for, machine, workers=1, weights=weights)
        visible = machine.only(built_for.sm)
    with (
        tempfile.TemporaryDirectory(prefix="enginix-", ignore_cleanup_errors=True) as name,
        new_directory(out) as partial,
    ):
        work = Path(os.path.realpath(name))
        sandbox = Sandbox(
            runtime,
            options.rootfs,
            work,
            driver,
            binds=(*make_read_binds([engine, questions_file, SCRIPT]), Bind(partial, writable=True)),
            extra={"TLLM_WORKER_USE_SINGLE_PROCESS": "1" if ranks == 1 else "0", **visible},
        )
        sandbox.prepare()
        request = engine_request | {"asked": str(questions_file), "output": str(partial)}
        (work / "request.json").write_text(json.dumps(request), "utf-8")
        python = runtime.python if options.rootfs is not None else shutil.which("python3") or "python3"
        words = [python, str(SCRIPT), str(sandbox.inside / "request.json")]
        console.print_message(f"asking {engine_manifest.name} in {runtime.id} on {machine.gpus[0].name}")
        outcome = supervise_command(sandbox, words, Watch(stall=options.stall), stage="answers")
        if outcome.status != 0 or outcome.stalled:
            raise explain_build_failure(f"asking {engine_manifest.name}", outcome, options.stall)
        if not (partial / ANSWERS_FILE).is_file() or not (partial / TENSORS).is_file():
            raise GateError(
                "the runtime ended without an error, but wrote no answers",
                where=engine_manifest.name,
                fix="ask again; if it repeats, report the runtime and its last lines",
            )
        answers_origin.write_answers_origin(engine, partial)


def _read_ranks(engine: Path, engine_manifest: Manifest) -> tuple[int, int]:
    """Read tensor and pipeline parallelism."""
    rank_counts = [engine_manifest.options.get(name, 1) for name in ("tensorParallel", "pipelineParallel")]
    if not all(type(n) is int and n > 0 for n in rank_counts):
        raise ManifestError(f"ranks are {rank_counts!r}", where=str(engine), fix="build this engine again")
    return rank_counts[0], rank_counts[1]


def _build_request(engine: Path, engine_manifest: Manifest) -> dict[str, Any]:
    """Build the request for the program inside: the model, the arguments of its class, its limits."""
    limits = engine_manifest.options.get("limits", {})
    try:
        limit, longest = int(limits["maxSeqLen"]), int(limits["maxInputLen"])
        longest = min(longest, limit, int(limits["maxNumTokens"]))
        # Drafts lengthen an engine's max_seq_len beyond the request, but not its answers.
        requested_options = engine_manifest.options.get("asked", {})
        limit = min(limit, int(requested_options["limits"]["maxSeqLen"])) if requested_options else limit
    except (KeyError, TypeError, ValueError) as e:
        raise ManifestError(f"limits are {limits!r}", where=str(engine), fix="build this engine again") from e
    common = {"kind": engine_manifest.kind, "limit": limit, "longest": longest, "contextLogits": None}
    # The resolved path, not a link: directories outside the engine are bound by their own path.
    if engine_manifest.kind == "tensorrt":
        plugins = engine_manifest.options.get("plugins", {})
        gathers = any(plugins.get(name) is True for name in ("gatherContextLogits", "gatherAllTokenLogits"))
        path = os.path.realpath(engine / "engine")
        tensor, pipeline = _read_ranks(engine, engine_manifest)
        arguments = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
        absent = {} if gathers else {"contextLogits": NO_CONTEXT_LOGITS}
        return common | {"model": path, "arguments": arguments} | absent
    arguments = read_json_object(engine / "llm_args.yaml", ManifestError)
    return common | {"model": os.path.realpath(engine / "model"), "arguments": arguments}
