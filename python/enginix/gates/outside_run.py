"""Asks an engine of kind ``tensorrt`` or ``llmapi`` inside its runtime, on its GPU.

What it said is said.json and said.safetensors; enginix.gates.outside_said reads them.
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
from enginix.engine import preflight
from enginix.engine.failures import explain
from enginix.engine.target import probe, target
from enginix.errors import GateError, ManifestError
from enginix.files import new_directory
from enginix.gates import outside_asked, outside_engine
from enginix.manifest import Manifest
from enginix.runtime import driver as drivers
from enginix.runtime import table
from enginix.runtime.sandbox import Bind, Room, check_namespaces, reading
from enginix.runtime.supervise import Watch, supervise

SCRIPT = Path(__file__).with_name("outside_trtllm.py")
KINDS = ("tensorrt", "llmapi")
SAID, TENSORS = "said.json", "said.safetensors"
NO_CONTEXT_LOGITS = (
    "the engine was built without gatherContextLogits, so its runtime scores no text "
    "(mkEngine { plugins.gatherContextLogits = true; }, or --plugin gather-context-logits=true)"
)


@dataclass(frozen=True)
class Where:
    """Where an engine is asked.

    Attributes:
        rootfs: the runtime's root file system; None asks on this machine's own, as in a container of it.
        driver: the GPU driver's root; None looks for it.
        pin: the runtime's pin, whose environment it gets.
        stall: seconds without a sign after which the engine counts as hung.
        accept_driver: ask with a driver older than the runtime's floor.
    """

    rootfs: Path | None = None
    driver: Path | None = None
    pin: Path | None = None
    stall: float = 1800.0
    accept_driver: bool = False


def ask(engine: Path, asked: Path, out: Path, where: Where) -> None:
    """Asks an engine everything; ``out`` is whole at the end, or absent.

    Args:
        asked: asked.json, or its directory.

    Raises:
        ManifestError: not an engine of these kinds.
        MachineError: this machine lacks what the engine needs: GPU, driver, runtime, user namespaces.
        BuildError: the runtime failed or hung while it was asked; the cause where it is known.
        GateError: it ended without answers.
    """
    made = manifest.read(engine, "engine")
    if made.kind not in KINDS:
        raise ManifestError(
            f"an engine of kind {made.kind}", where=str(engine), fix=f"pass one of kind {' or '.join(KINDS)}"
        )
    asked = Path(os.path.realpath(asked / outside_asked.FILE if asked.is_dir() else asked))
    outside_asked.read(asked)
    runtime = table.find(str(made.runtime.get("id")), made.kind, where.pin)
    wanted = _wanted(engine, made)
    ranks = math.prod(_ranks(engine, made))
    if where.rootfs is not None:
        check_namespaces()
    preflight.check_version(runtime, where.rootfs)
    driver = drivers.find(where.driver)
    machine = probe(driver)
    if not where.accept_driver:
        preflight.check_driver(runtime, machine)
    visible: dict[str, str] = {}
    if made.target.get("name"):
        weights = sum(p.stat().st_size for p in (engine / "engine").glob("*.engine")) // ranks
        built_for = target(str(made.target["name"]))
        preflight.check_gpu(built_for, machine, workers=1, weights=weights)
        visible = machine.only(built_for.sm)
    with (
        tempfile.TemporaryDirectory(prefix="enginix-", ignore_cleanup_errors=True) as name,
        new_directory(out) as partial,
    ):
        work = Path(os.path.realpath(name))
        room = Room(
            runtime,
            where.rootfs,
            work,
            driver,
            binds=(*reading([engine, asked, SCRIPT]), Bind(partial, writable=True)),
            extra={"TLLM_WORKER_USE_SINGLE_PROCESS": "1" if ranks == 1 else "0", **visible},
        )
        room.prepare()
        request = wanted | {"asked": str(asked), "output": str(partial)}
        (work / "request.json").write_text(json.dumps(request), "utf-8")
        python = runtime.python if where.rootfs is not None else shutil.which("python3") or "python3"
        words = [python, str(SCRIPT), str(room.inside / "request.json")]
        console.say(f"asking {made.name} in {runtime.id} on {machine.gpus[0].name}")
        outcome = supervise(room, words, Watch(stall=where.stall), stage="answers")
        if outcome.status != 0 or outcome.stalled:
            raise explain(f"asking {made.name}", outcome, where.stall)
        if not (partial / SAID).is_file() or not (partial / TENSORS).is_file():
            raise GateError(
                "the runtime ended without an error, but wrote no answers",
                where=made.name,
                fix="ask again; if it repeats, report the runtime and its last lines",
            )
        outside_engine.write(engine, partial)


def _ranks(engine: Path, made: Manifest) -> tuple[int, int]:
    """Tensor and pipeline parallelism."""
    said = [made.options.get(name, 1) for name in ("tensorParallel", "pipelineParallel")]
    if not all(type(n) is int and n > 0 for n in said):
        raise ManifestError(f"ranks are {said!r}", where=str(engine), fix="build this engine again")
    return said[0], said[1]


def _wanted(engine: Path, made: Manifest) -> dict[str, Any]:
    """What the program inside is told: the model, the arguments of its class, how much fits."""
    limits = made.options.get("limits", {})
    try:
        limit, longest = int(limits["maxSeqLen"]), int(limits["maxInputLen"])
        longest = min(longest, limit, int(limits["maxNumTokens"]))
        # An engine with drafts is longer than what was asked for, but its answers are not.
        asked = made.options.get("asked", {})
        limit = min(limit, int(asked["limits"]["maxSeqLen"])) if asked else limit
    except (KeyError, TypeError, ValueError) as e:
        raise ManifestError(f"limits are {limits!r}", where=str(engine), fix="build this engine again") from e
    common = {"kind": made.kind, "limit": limit, "longest": longest, "contextLogits": None}
    # The place itself, not a link to it: what lies outside the engine is bound by its own path.
    if made.kind == "tensorrt":
        plugins = made.options.get("plugins", {})
        gathers = any(plugins.get(name) is True for name in ("gatherContextLogits", "gatherAllTokenLogits"))
        path = os.path.realpath(engine / "engine")
        tensor, pipeline = _ranks(engine, made)
        arguments = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
        absent = {} if gathers else {"contextLogits": NO_CONTEXT_LOGITS}
        return common | {"model": path, "arguments": arguments} | absent
    try:
        arguments = json.loads((engine / "llm_args.yaml").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ManifestError(f"unreadable: {e}", where=str(engine / "llm_args.yaml")) from e
    return common | {"model": os.path.realpath(engine / "model"), "arguments": arguments}
