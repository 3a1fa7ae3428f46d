"""Serve an existing engine by Edge-LLM's OpenAI server.

tensorrt-edgellm-serve takes a model, not an engine: it looks for the engine below its cache, by a digest of
the model and the limits, and builds a missing one. So the engine is linked into the cache, and a launch that
would build is refused.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import manifest, process
from enginix.compatibility import check
from enginix.digests import SourceWatch
from enginix.errors import MachineError, ManifestError, UsageError
from enginix.integrity import require_unchanged
from enginix.kinds.edgellm import options
from enginix.kinds.edgellm.build import LAUNCH_SCRIPT
from enginix.kinds.edgellm.export import read_model_identity
from enginix.model.identity import require_same_model
from enginix.ports import LOOPBACK

# Prints the engine's path in the server's cache, and the versions of wheel and TensorRT.
_FIND_BUNDLE_CODE = """
import json, sys
from importlib import metadata
from experimental.server.runtime import engine_build as e
limits = dict(zip(("max_input_len", "max_batch_size", "max_kv_cache_capacity"), map(int, sys.argv[3:])))
answer = {"bundle": str(e.bundle_cache_path(sys.argv[1], sys.argv[2], e.BuildOptions(**limits)))}
for name, package in (("edgellm", "tensorrt-edgellm"), ("tensorrt", "tensorrt")):
    try:
        answer[name] = metadata.version(package).split("+")[0].split(".post")[0]
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class ServerCommand:
    """The command line and environment of a server.

    Attributes:
        watch: notices a file of engine or model that changes after its digest was compared.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    watch: SourceWatch


def check_key_file(path: Path) -> None:
    """Refuse a key file without a key, or one that is not secret.

    Raises:
        UsageError: the file is missing, empty, readable by everybody, or has several lines.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text("utf-8").strip()
    except (OSError, ValueError) as e:
        raise UsageError(f"the API key cannot be read: {e}", where=path) from e
    if not text or any(c.isspace() or not c.isprintable() for c in text):
        raise UsageError("the file does not hold one key in one line", where=path)
    if mode & stat.S_IROTH:
        raise UsageError(
            "everybody can read the API key", where=path, fix="chmod 600, or pass a systemd credential"
        )


def prepare_server(
    engine: Path,
    model: Path,
    state: Path,
    *,
    host: str = "127.0.0.1",
    port: int,
    key_file: Path | None = None,
    python: Path | None = None,
    driver: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> ServerCommand:
    """Link the engine into the server's cache, and return the server's command.

    Args:
        state: writable directory of the server's own: its cache, in which the engine is linked.
        key_file: file with the API key; None serves without one, on loopback only.
        python: the Python that has the wheel and TensorRT; None takes this one.
        driver: directory of the GPU driver in place of the machine's.
        flags: options of edgellm.json's section serve.

    Raises:
        ManifestError: not an Edge-LLM engine, or one of another model.
        Mismatch: the engine does not run on this GPU or in this wheel; says what to rebuild.
        UsageError: an invalid option, or a host beyond loopback without a key.
        MachineError: the state directory cannot be written, or the wheel is missing.
    """
    flag_words = options.format_stage_flags("serve", flags or {})
    if not 1 <= port <= 65535:
        raise UsageError(f"{port} is not a port", where="--port", fix="1 to 65535")
    if key_file is not None:
        check_key_file(key_file)
    elif host not in (*LOOPBACK, "localhost"):
        raise UsageError(
            f"{host} is reachable by others, and there is no API key",
            where="--host",
            fix="pass --api-key-file, or serve on 127.0.0.1 behind a proxy that checks who asks",
        )
    watch = SourceWatch(engine, model)
    engine_manifest = manifest.read_manifest(engine, "engine")
    if engine_manifest.kind != "edgellm":
        raise ManifestError(
            f"an engine of kind {engine_manifest.kind}",
            where=engine,
            fix="enginix serve takes that kind",
        )
    if engine_manifest.options.get("builder") != "direct":
        raise ManifestError(
            "built from the ONNX export, for NVIDIA's C++ runtime; tensorrt-edgellm-serve does not take it",
            where=engine,
            fix='build it with builder "direct", or run llm_inference on it',
        )
    require_unchanged(engine)
    # The engine needs the model's weights while it runs.
    require_same_model(engine_manifest.inputs.get("model"), read_model_identity(model), model, "engine")
    check.check_before_start(engine_manifest, engine, driver)
    limits = engine_manifest.options["limits"]
    program, directory = os.path.abspath(python or sys.executable), Path(os.path.abspath(state))
    cache, home = directory / "cache", directory / "home"
    bundle, versions = _find_bundle(program, model, cache, limits)
    check.require_versions(engine_manifest, engine, versions)
    _link_engine(engine / "engine", bundle, cache)
    key_word = os.path.abspath(key_file) if key_file else "-"
    words = [program, str(LAUNCH_SCRIPT), "experimental.server.cli", key_word, os.path.abspath(model)]
    words += ["--host", host, "--port", str(port), "--cache-dir", str(cache)]
    words += [*options.format_stage_flags("build", limits), *flag_words]
    home.mkdir(exist_ok=True)
    variables = {
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONNOUSERSITE": "1",
    }
    return ServerCommand(tuple(words), process.build_environment(variables), watch)


def _find_bundle(
    python: str, model: Path, cache: Path, limits: Mapping[str, Any]
) -> tuple[Path, dict[str, str]]:
    """Ask the wheel for the engine's path in the server's cache, and the versions of wheel and TensorRT."""
    numbers = [str(limits[name]) for name in ("maxInputLen", "maxBatchSize", "maxKvCacheCapacity")]
    done = process.run_program(
        [python, "-c", _FIND_BUNDLE_CODE, os.path.abspath(model), cache, *numbers], cwd=Path("/")
    )
    try:
        answer = dict(json.loads(done.stdout.strip().splitlines()[-1]))
        return Path(answer.pop("bundle")), answer
    except (ValueError, LookupError, TypeError) as e:
        raise MachineError(
            f"the wheel did not print its path for engines: {done.stdout[-200:]!r}", where=python
        ) from e


def _link_engine(engine: Path, bundle: Path, cache: Path) -> None:
    # Resolved: a link in the cache may lead elsewhere, and the directory is removed below.
    if not (bundle.parent.resolve() / bundle.name).is_relative_to(cache.resolve()):
        raise MachineError("the server's path for its engine is outside its cache", where=bundle)
    try:
        # The server touches the directory, so it is a real one; the files are links.
        shutil.rmtree(bundle, ignore_errors=True)
        for path in sorted(p for p in engine.rglob("*") if p.is_file()):
            link = bundle / path.relative_to(engine)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.abspath(path))
    except OSError as e:
        raise MachineError(f"cannot write: {e.strerror}", where=cache, fix="pass a writable --state") from e
