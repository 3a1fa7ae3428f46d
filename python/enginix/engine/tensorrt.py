"""Engine of kind ``tensorrt``: ``trtllm-build`` run inside a pinned runtime, on the target's GPU.

<engine>/
  enginix.json     manifest: what it is, from what, for which GPU and runtime
  engine/          config.json, rank{r}.engine: what TensorRT-LLM loads
  tokenizer/       tokenizer, chat template, generation defaults
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from enginix import __version__, console, manifest
from enginix.console import human_bytes
from enginix.engine import options as build_options
from enginix.engine import preflight
from enginix.engine.failures import BuildError, explain
from enginix.engine.options import Limits, Value
from enginix.engine.target import Machine, Target, probe
from enginix.engine.tensorrt_checkpoint import Checkpoint, tokenizer_files
from enginix.errors import MachineError, ManifestError, UsageError
from enginix.files import new_directory, sha256_file
from enginix.manifest import Manifest
from enginix.runtime import driver as drivers
from enginix.runtime.driver import Driver
from enginix.runtime.sandbox import Bind, Room, check_namespaces, reading
from enginix.runtime.supervise import Outcome, Watch, supervise
from enginix.runtime.table import Runtime
from enginix.tables import table

SCRIPT = Path(__file__).with_name("tensorrt_llm_api.py")
STRATEGIES = ("checkpoint", "llm-api")
TIMING_IN = "timing.in"


@dataclass(frozen=True)
class Request:
    """An engine as it was asked for, every default written out.

    Attributes:
        strategy: ``checkpoint`` runs trtllm-build on our checkpoint; ``llm-api`` lets TensorRT-LLM load
        the model. workers: ranks built at once, a GPU each.
        timing_cache: tactics of an earlier build.
        stall: seconds without a sign of progress after which a stage counts as hung.
        plan: predicted memory, as the plan stage wrote it.
        gates: a reference engine of the same checkpoint, whose gates passed; None is recorded as "not gated".
    """

    name: str
    target: Target
    runtime: Runtime
    limits: Limits
    options: dict[str, Value] = field(default_factory=dict)
    strategy: str = "checkpoint"
    workers: int = 1
    timing_cache: Path | None = None
    stall: float = 1800.0
    beat: float = 60.0
    accept_driver: bool = False
    plan: dict[str, Any] | None = None
    gates: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where a build runs and writes.

    Attributes:
        rootfs: the runtime's root file system; None runs on the host's, as in a container of the image.
        driver: the GPU driver's root; None looks for it.
        in_place: write straight into ``out``, which is then removed on failure: for Nix, whose outputs are
        whole or
            absent by themselves, and whose store has no room beside them.
        timing: where the timing cache goes; None leaves it out.
    """

    out: Path
    rootfs: Path | None = None
    driver: Path | None = None
    in_place: bool = False
    timing: Path | None = None


def build(request: Request, checkpoint_dir: Path | None, model: Path, place: Place) -> Manifest:
    """Preflight, build, verification, tokenizer, manifest; ``place.out`` is whole at the end, or absent.

    Raises:
        UsageError: the request contradicts the checkpoint or the target.
        MachineError: this machine lacks something; said before a weight is read.
        BuildError: the build failed, hung, or delivered something else than the engine that was asked for.
    """
    phase("preflight")
    checkpoint = Checkpoint.read(checkpoint_dir) if checkpoint_dir is not None else Checkpoint.of_model(model)
    for warning in preflight.check_support(
        checkpoint.quantization, checkpoint.kv_cache, checkpoint.architecture, request.target
    ):
        console.say(f"warning: {warning}")
    _check_request(request, checkpoint)
    driver = drivers.find(place.driver)
    with _work() as work, _output(place) as out:
        room, found = _preflight(request, checkpoint, model, place, driver, work, out)
        phase("build")
        engine = out / "engine"
        engine.mkdir()
        outcome = _run(request, checkpoint, model, room, engine)
        phase("verify")
        ranks = verify(engine, request, checkpoint)
        _no_paths(engine, [p for p in (checkpoint_dir, model) if p is not None])
        timing = _timing(work, place)
        tokenizer = out / "tokenizer"
        tokenizer.mkdir()
        for path in tokenizer_files(model):
            shutil.copyfile(path, tokenizer / path.name)
        made = _describe(request, checkpoint, model, found, outcome, ranks, timing)
        made.write(out)
    return made


def phase(name: str) -> None:
    """Names the stage: to Nix, which shows it, and to people."""
    if os.environ.get("NIX_LOG_FD"):
        console.say("@nix " + json.dumps({"action": "setPhase", "phase": name}))
    console.say(f"stage: {name}")


def command(request: Request, checkpoint: Checkpoint, engine: Path, timing: Path, room: Room) -> list[str]:
    """The command line of a stage; nothing that the runtime's contract does not know."""
    cache = ["--input_timing_cache", str(room.inside / TIMING_IN)] if request.timing_cache else []
    if request.strategy == "llm-api":
        return [
            room.runtime.python if room.rootfs is not None else "python3",
            str(SCRIPT),
            str(room.inside / "request.json"),
        ]
    return [
        "trtllm-build",
        "--checkpoint_dir",
        str(checkpoint.path),
        "--output_dir",
        str(engine),
        "--output_timing_cache",
        str(timing),
        *cache,
        "--workers",
        str(request.workers),
        "--log_level",
        "info",
        *request.limits.flags(),
        *build_options.flags(request.options),
    ]


def verify(engine: Path, request: Request, checkpoint: Checkpoint) -> dict[str, int]:
    """Whether a directory is the engine that was asked for: an exit status of 0 does not say so.

    Returns:
        Size of each rank's engine in bytes.

    Raises:
        BuildError: a file is missing, too small for its weights, or of another version or size than asked
        for.
    """
    path = engine / "config.json"
    fix = "build again; if it repeats, report the runtime and the last lines of the build"
    try:
        config = json.loads(path.read_text("utf-8"))
        version, built = str(config["version"]), dict(config["build_config"])
        config["pretrained_config"]["architecture"]
    except FileNotFoundError as e:
        raise BuildError(
            "the build ended without an error, but wrote no engine", where="config.json", fix=fix
        ) from e
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise BuildError(f"unreadable: {e}", where="config.json", fix=fix) from e
    if version.split("+")[0] != request.runtime.version:
        raise BuildError(
            f"the engine says TensorRT-LLM {version}; runtime {request.runtime.id} is "
            f"{request.runtime.version}",
            where="config.json",
            fix="pass the runtime's own image",
        )
    for key, value in request.limits.as_build_config().items():
        # TensorRT-LLM replaces max_input_len when padding is removed and context attention is fused.
        if built.get(key) != value and key != "max_input_len":
            raise BuildError(
                f"{key} is {built.get(key)!r}, {value} was asked for",
                where="config.json",
                fix="report it with the options",
            )
    sizes = {}
    for rank in range(checkpoint.world_size):
        name = f"rank{rank}.engine"
        size = (engine / name).stat().st_size if (engine / name).is_file() else 0
        weights = (
            0
            if request.options.get("stripPlan") or request.options.get("fastBuild")
            else checkpoint.ranks.get(rank, 0)
        )
        if size == 0 or size < weights // 2:
            what = (
                "missing or empty"
                if size == 0
                else f"{human_bytes(size)}, its weights alone take {human_bytes(weights)}"
            )
            raise BuildError(f"{what}: a partial engine", where=name, fix=fix)
        sizes[name] = size
    return sizes


def _check_request(request: Request, checkpoint: Checkpoint) -> None:
    if request.strategy not in STRATEGIES:
        raise UsageError(f"unknown strategy {request.strategy!r}", fix=f"use one of {', '.join(STRATEGIES)}")
    if request.strategy == "checkpoint" and not checkpoint.ranks:
        raise UsageError("the strategy checkpoint needs a checkpoint", fix="pass one (enginix convert)")
    if checkpoint.context is not None and request.limits.maxSeqLen > checkpoint.context:
        raise UsageError(
            f"maxSeqLen {request.limits.maxSeqLen} is more than the model's context, {checkpoint.context}",
            fix=f"use at most {checkpoint.context}",
        )
    if request.workers > checkpoint.world_size:
        raise UsageError(
            f"{request.workers} workers for {checkpoint.world_size} rank(s)",
            fix=f"--workers {checkpoint.world_size}",
        )
    build_options.check(request.options, request.runtime.id)
    if request.strategy == "llm-api":
        _llm_api(request.options)
    _gates(request, checkpoint)
    limits = request.limits
    if limits.maxInputLen > limits.maxNumTokens and request.options.get("usePagedContextFmha") is False:
        raise UsageError(
            f"maxInputLen {limits.maxInputLen} is more than maxNumTokens {limits.maxNumTokens}, and "
            f"without paged "
            "context attention a prompt is not taken in chunks",
            fix="raise maxNumTokens, lower maxInputLen, or --plugin use-paged-context-fmha=true",
        )


def _preflight(
    request: Request, checkpoint: Checkpoint, model: Path, place: Place, driver: Driver, work: Path, out: Path
) -> tuple[Room, preflight.Found]:
    if place.rootfs is not None:
        check_namespaces()
    preflight.check_version(request.runtime, place.rootfs)
    machine = probe(driver)
    if not request.accept_driver:
        preflight.check_driver(request.runtime, machine)
    found = preflight.check_gpu(request.target, machine, workers=request.workers, weights=checkpoint.heaviest)
    preflight.check_disk(out, work, checkpoint.total, workspace=request.strategy == "llm-api")
    if request.timing_cache is not None and not request.timing_cache.is_file():
        raise UsageError("no such timing cache", where=str(request.timing_cache))
    reads = [p for p in (checkpoint.path, model, SCRIPT) if p is not None]
    room = Room(
        request.runtime,
        place.rootfs,
        work,
        driver,
        binds=(*reading(reads), Bind(out, writable=True)),
        # One rank runs in process; more of them need the LLM API's own workers.
        extra={"TLLM_WORKER_USE_SINGLE_PROCESS": "1" if checkpoint.world_size == 1 else "0"},
    )
    room.prepare()
    gpu = found.gpu
    console.say(
        f"{gpu.name}, SM {gpu.sm}, {human_bytes(gpu.free)} of {human_bytes(gpu.total)} free; driver "
        f"{machine.driver}; "
        f"runtime {request.runtime.id}; weights {human_bytes(checkpoint.total)} in "
        f"{checkpoint.world_size} rank(s)"
    )
    for note in found.notes:
        console.say(f"note: {note}")
    return room, found


def _run(request: Request, checkpoint: Checkpoint, model: Path, room: Room, engine: Path) -> Outcome:
    timing = room.inside / "timing.cache"
    # TensorRT-LLM writes such paths into config.json: those of the work directory name nobody's files.
    if request.timing_cache is not None:
        shutil.copyfile(request.timing_cache, room.work / TIMING_IN)
    request = _with_adapters(request, room)
    words = command(request, checkpoint, engine, timing, room)
    if request.strategy == "llm-api":
        asked: dict[str, Any] = {
            "model": str(model),
            "output": str(engine),
            "tensor_parallel_size": checkpoint.tensor_parallel,
            "pipeline_parallel_size": checkpoint.pipeline_parallel,
            **_llm_api(request.options),
        }
        asked["build_config"] |= request.limits.as_build_config() | {
            "input_timing_cache": str(room.inside / TIMING_IN) if request.timing_cache else None,
            "output_timing_cache": str(timing),
        }
        (room.work / "request.json").write_text(json.dumps(asked), "utf-8")
    console.say(" ".join(words))
    watch = Watch(
        stall=request.stall,
        beat=request.beat,
        outputs=(engine, room.work / "timing.cache"),
        gpu_memory=_gpu_memory(room.driver),
    )
    outcome = supervise(room, words, watch, stage="build")
    if outcome.status != 0 or outcome.stalled:
        raise explain(words[0], outcome, request.stall)
    return outcome


def _with_adapters(request: Request, room: Room) -> Request:
    adapters = request.options.get("loraDir")
    if not isinstance(adapters, list):
        return request
    inside = []
    for number, adapter in enumerate(adapters):
        if not Path(adapter).is_dir():
            raise UsageError("no such directory", where=adapter, fix="pass LoRA adapters as directories")
        shutil.copytree(adapter, room.work / "lora" / str(number))
        inside.append(str(room.inside / "lora" / str(number)))
    return replace(request, options={**request.options, "loraDir": inside})


def _adapters(directories: Value) -> list[dict[str, str]]:
    assert isinstance(directories, list)
    return [{p.name: sha256_file(p) for p in sorted(Path(d).iterdir()) if p.is_file()} for d in directories]


def _gates(request: Request, checkpoint: Checkpoint) -> Any:
    """Verdicts of the gates that the checkpoint passed on the reference kind.

    Raises:
        ManifestError: not a reference engine, or one of another checkpoint, or one that was not gated.
    """
    if request.gates is None:
        return "not gated"
    found = manifest.read(request.gates, "engine")
    gated, mine = found.inputs.get("checkpoint"), checkpoint.path and checkpoint.path / manifest.FILE
    digest = sha256_file(mine) if mine and mine.exists() else None
    if found.kind != "reference" or not isinstance(gated, dict) or gated.get("manifestSha256") != digest:
        raise ManifestError(
            "is not a reference engine of this checkpoint",
            where=str(request.gates),
            fix="gate this checkpoint: enginix build CHECKPOINT --kind reference",
        )
    verdicts = found.results.get("gates")
    if not isinstance(verdicts, dict) or any(v != "passed" for v in verdicts.values()):
        raise ManifestError("its gates did not pass", where=str(request.gates), fix="build it with gates")
    return {"checkpoint": verdicts, "manifestSha256": sha256_file(request.gates / manifest.FILE)}


def _llm_api(options: dict[str, Value]) -> dict[str, dict[str, Value]]:
    """Options as fields of BuildConfig and PluginConfig."""
    rows = table("build_options")["options"]
    config: dict[str, Value] = {}
    plugins: dict[str, Value] = {}
    for name, value in options.items():
        field_name = rows[name]["llmApi"]
        if field_name == "plugin_config":
            plugins[build_options.snake(name)] = value
        elif field_name is not None:
            config[field_name] = value
        elif (name, value) != ("kvCacheType", "paged"):
            raise UsageError(
                f"the strategy llm-api has no {name}", fix="leave it out, or use the strategy checkpoint"
            )
    return {"build_config": config, "plugin_config": plugins}


def _gpu_memory(driver: Driver) -> Any:
    """Samples bytes in use on the GPUs, at most every five seconds."""
    import time

    last: list[float | int | None] = [0.0, None]

    def sample() -> int | None:
        now = time.monotonic()
        if now - float(last[0] or 0) >= 5:
            last[0] = now
            with contextlib.suppress(MachineError):
                last[1] = max(g.total - g.free for g in probe(driver).gpus)
        return None if last[1] is None else int(last[1])

    return sample


def _timing(work: Path, place: Place) -> str | None:
    """Keeps the timing cache; returns its digest."""
    # trtllm-build's own default, in its working directory, for a version that ignores the flag.
    path = next((work / n for n in ("timing.cache", "model.cache") if (work / n).is_file()), None)
    if path is None:
        if place.timing is not None:
            raise BuildError("the build wrote no timing cache", where=str(place.timing), fix="build again")
        return None
    if place.timing is not None:
        shutil.copyfile(path, place.timing)
    return sha256_file(path)


def _no_paths(engine: Path, inputs: list[Path]) -> None:
    """No small file may name an input: such a path drags the weights into the closure of whoever serves
    the engine.
    """
    names = {os.fsencode(str(p)) for given in inputs for p in (given, Path(os.path.realpath(given)))}
    for path in engine.rglob("*"):
        if path.is_file() and path.stat().st_size < 16 << 20:
            content = path.read_bytes()
            for name in names:
                if name in content:
                    raise BuildError(
                        f"names the path of an input, {os.fsdecode(name)}",
                        where=str(path.relative_to(engine.parent)),
                        fix="report it: the file must not keep the weights alive",
                    )


def _describe(
    request: Request,
    checkpoint: Checkpoint,
    model: Path,
    found: preflight.Found,
    outcome: Outcome,
    ranks: dict[str, int],
    timing: str | None,
) -> Manifest:
    runtime, machine = request.runtime, found.machine
    return Manifest(
        artefact="engine",
        name=request.name,
        kind="tensorrt",
        model={
            "architecture": checkpoint.architecture,
            "quantization": checkpoint.quantization,
            "kvCacheQuantization": checkpoint.kv_cache,
            "dtype": checkpoint.dtype,
            "maxPositionEmbeddings": checkpoint.context,
        },
        inputs=checkpoint.identity(model)
        | ({"timingCache": {"sha256": sha256_file(request.timing_cache)}} if request.timing_cache else {}),
        options={
            "strategy": request.strategy,
            "limits": asdict(request.limits),
            # By content, never by path.
            "plugins": {n: _adapters(v) if n == "loraDir" else v for n, v in sorted(request.options.items())},
            "tensorParallel": checkpoint.tensor_parallel,
            "pipelineParallel": checkpoint.pipeline_parallel,
            "workers": request.workers,
        },
        target={
            "name": request.target.name,
            "sm": request.target.sm,
            "gpu": found.gpu.name,
            "memory": found.gpu.total,
            "count": checkpoint.world_size,
        },
        runtime={
            "id": runtime.id,
            "tensorrtLlm": runtime.version,
            "tensorrt": runtime.tensorrt,
            "cuda": runtime.cuda,
            "nccl": runtime.row.get("nccl"),
            "driverFloor": runtime.driver,
            "driver": machine.driver,
        },
        tools={"enginix": __version__},
        results={
            "gates": _gates(request, checkpoint),
            "ranks": ranks,
            "timingCache": {"sha256": timing} if timing else None,
            "plan": {
                "predicted": request.plan,
                "measured": {"hostMemoryPeak": outcome.host_peak, "gpuMemoryPeak": outcome.gpu_peak},
            },
            "notes": list(found.notes),
        },
    )


@contextlib.contextmanager
def _work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="enginix-", ignore_cleanup_errors=True) as name:
        yield Path(os.path.realpath(name))


@contextlib.contextmanager
def _output(place: Place) -> Iterator[Path]:
    if not place.in_place:
        with new_directory(place.out) as partial:
            yield partial
        return
    try:
        place.out.mkdir()
    except OSError as e:
        raise UsageError(f"cannot make: {e.strerror}", where=str(place.out)) from e
    try:
        yield place.out
    except BaseException:
        shutil.rmtree(place.out, ignore_errors=True)
        if place.timing is not None:
            place.timing.unlink(missing_ok=True)
        raise


def live(driver: Path | None) -> Machine:
    """The machine's GPUs now."""
    return probe(drivers.find(driver))
