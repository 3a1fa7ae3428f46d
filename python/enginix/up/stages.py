"""The stages between a model and a server, each a command of enginix that writes one directory.

A stage's directory is named by a hash of everything that goes into it: the same request finds what an earlier
run left, and another request never does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from enginix import __version__
from enginix.errors import UsageError
from enginix.files import find_user_cache, sha256_json
from enginix.hub.lock import Lock
from enginix.kinds.registry import DEFAULT_KIND, find_kind


@dataclass(frozen=True)
class UpRequest:
    """What ``enginix up`` was asked for.

    Attributes:
        name: of the model, also that of the endpoint.
        source: lock file, or directory of a model.
        lock: of ``source``; None for a directory.
        format: number format that ``enginix quantize`` writes; None keeps the model's.
        calibration: own calibration data; None takes the text that enginix brings.
        build_options: words for ``enginix build``, such as ``--target h200``.
        serve_options: words for ``enginix serve``, such as ``--rootfs DIR``.
        gates: whether the engine is compared with its model.
        interpreted: the interpreter of its network serves it, on the CPU.
    """

    name: str
    source: Path
    lock: Lock | None
    kind: str = DEFAULT_KIND
    format: str | None = None
    calibration: Path | None = None
    build_options: tuple[str, ...] = ()
    serve_options: tuple[str, ...] = ()
    gates: bool = True
    interpreted: bool = False


@dataclass(frozen=True)
class Stage:
    """One command and the directory that it writes.

    Attributes:
        words: after ``enginix``, with the output at the end.
        input_bytes: size of what it reads, for its speed; 0 for unknown.
    """

    name: str
    words: tuple[str, ...]
    output: Path
    input_bytes: int = field(default=0, compare=False)


def locate_cache() -> Path:
    """Return the directory of everything that ``enginix up`` keeps."""
    return find_user_cache() / "up"


def plan_stages(request: UpRequest, cache: Path) -> tuple[Stage, ...]:
    """Return the stages in their order.

    Raises:
        UsageError: the kind has no Triton server, or does not take a checkpoint in a number format.
    """
    kind = find_kind(request.kind)
    if kind.triton is None:
        raise UsageError(
            f"enginix up has no way to serve kind {kind.name}",
            where="--kind",
            fix=", then ".join(kind.build_commands),
        )
    stages: list[Stage] = []
    size = 0

    def add(name: str, words: list[str], inputs: object) -> Path:
        key = sha256_json([__version__, name, words, inputs])[:16]
        output = cache / f"{request.name}-{name}-{key}"
        stages.append(Stage(name, (*words, "-o", str(output)), output, size))
        return output

    if request.lock is None:
        model = request.source
        files = _describe_directory(request.source)
        size = sum(bytes_of_file for _, bytes_of_file, _ in files)
        identity: object = files
    else:
        size = sum(file.size for file in request.lock.files)
        identity = [[file.path, file.sha256] for file in request.lock.files]
        model = add("fetch", ["fetch", str(request.source)], identity)
    source = model
    if request.format is not None:
        words = ["quantize", str(model), "--format", request.format, "--name", name_endpoint(request)]
        calibration = request.calibration or add("calibrate", ["calibrate", str(model)], identity)
        source = add("quantize", [*words, "--calibration", str(calibration)], identity)
    build = ["build", "--kind", kind.name, "--model", str(source), "--name", name_endpoint(request)]
    checkpoint: Path | None = None
    if kind.built_from == "checkpoint":
        checkpoint = add("convert", ["convert", str(source), "--kind", kind.converted_as], identity)
        build[1:1] = [str(checkpoint), "--link-checkpoint"]
    if source != model:
        build += ["--reference", str(model)]
    build += [*request.build_options, *([] if request.gates else ["--no-gates"])]
    if kind.own_build is not None:
        words = [kind.own_build.command, str(checkpoint)]
        build = [*words, "--model", str(source), "--name", name_endpoint(request)]
    engine = add("build", build, identity)
    if is_served_by_triton(kind.name):
        interpreter = ["--interpreter", str(checkpoint)] if request.interpreted else []
        add("triton-repo", ["triton-repo", str(engine), *interpreter, *_find_device(request)], identity)
    return tuple(stages)


def _find_device(request: UpRequest) -> list[str]:
    """Return the words that name the device: what builds an engine of kind reference serves it, too."""
    given = request.build_options
    at = given.index("--device") if "--device" in given else len(given)
    return [*given[at : at + 2]]


def is_served_by_triton(kind: str) -> bool:
    """Tell whether Triton serves a kind behind the gateway; the others have an OpenAI server of their own.

    As mkGateway has it: NVIDIA's Triton models tell neither why an answer ended nor its tokens as OpenAI's
    interface has them.
    """
    return find_kind(kind).server is None


@dataclass(frozen=True)
class ServerPlan:
    """The server behind the gateway.

    Attributes:
        words: its command, after ``enginix``.
        backend: its row of the gateway's description.
    """

    name: str
    words: tuple[str, ...]
    backend: dict[str, str]


def plan_server(request: UpRequest, artefact: Path, port: int) -> ServerPlan:
    """Return the server of a finished request.

    Args:
        artefact: the output of the last stage.
    """
    address = f"http://127.0.0.1:{port}"
    if is_served_by_triton(request.kind):
        words: tuple[str, ...] = (
            "serve",
            str(artefact),
            "--http-port",
            str(port),
            "--no-grpc",
            "--no-metrics",
        )
        backend = {"kind": "triton", "url": address, "model": "ensemble"}
        return ServerPlan("tritonserver", (*words, *request.serve_options), backend)
    words = ("runner", str(artefact), "--port", str(port), *request.serve_options)
    backend = {"kind": "openai", "url": f"{address}/v1", "model": name_endpoint(request)}
    return ServerPlan("trtllm-serve", words, backend)


def name_endpoint(request: UpRequest) -> str:
    """Return the model's name at the endpoint, with its format: ``qwen3-0.6b-fp8``."""
    return request.name if request.format is None else f"{request.name}-{request.format.replace('_', '-')}"


def name_model(source: str) -> str:
    """Return a short name: of a repository ``Qwen/Qwen3-0.6B`` it is ``qwen3-0.6b``."""
    name = source.rstrip("/").rsplit("/", 1)[-1].lower()
    return name.removesuffix(".json").removesuffix(".lock")


def _describe_directory(directory: Path) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of a model's files: a changed file is another model."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def format_nix(request: UpRequest, lock_file: str | None) -> str:
    """Return the Nix expression of the same stages, for a flake that has enginix' functions in scope."""
    model = (
        f'mkHfModel {{ name = "{request.name}"; lock = ./{lock_file}; }}'
        if lock_file is not None
        else f"/* a model's derivation, in place of the directory {request.source} */"
    )
    lines = [
        "{ mkHfModel, mkQuantized, mkCalibration, mkEngine, mkTritonRepo, mkTritonServer,",
        "  mkServe, mkGateway, ... }:",
        "let",
        f"  model = {model};",
    ]
    if request.format is not None:
        text = (
            "mkCalibration { tokenizer = model; }"
            if request.calibration is None
            else f"/* a calibration's derivation, in place of the directory {request.calibration} */"
        )
        lines.append(
            f'  quantized = mkQuantized {{ inherit model; format = "{request.format}"; '
            f"calibration = {text}; }};"
        )
    engine = f"mkEngine {{ {_format_engine_arguments(request)} }}"
    lines += [
        f"  engine = {engine};",
        # The gateway takes no Triton server of NVIDIA's models.
        "  server = mkTritonServer { repo = mkTritonRepo { inherit engine; }; };"
        if is_served_by_triton(request.kind)
        else "  server = mkServe { inherit engine; };",
        "in",
        f'mkGateway {{ servers."{name_endpoint(request)}" = server; }}',
    ]
    return "\n".join(lines)


def _format_engine_arguments(request: UpRequest) -> str:
    given = dict(zip(request.build_options[::2], request.build_options[1::2], strict=True))
    words = [f'kind = "{request.kind}";', "inherit quantized;" if request.format else "inherit model;"]
    has_target = find_kind(request.kind).has_target
    target, runtime = (given.get("--target"), given.get("--runtime")) if has_target else (None, None)
    if target is not None:
        words.append(f'target = "{target}";')
    if runtime is not None and runtime.endswith(".json"):
        words.append(f"runtime = /* mkRuntime {{ like; image; versions; }}, in place of {runtime} */;")
    elif runtime is not None:
        words.append(f'runtime = "{runtime}";')
    if not request.gates:
        words.append("gates = { };")
    return " ".join(words)
