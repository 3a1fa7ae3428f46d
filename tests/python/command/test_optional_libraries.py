"""A library that is not installed: status 5, the extra and the command that installs it."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from enginix import cli, optional_libraries
from enginix.cli import command_table
from enginix.manifest import Manifest
from enginix.optional_libraries import CORE, EXTRAS, pause_garbage_collector

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "tests/models/tiny-qwen3"
LOCK = ROOT / "tests/models/tiny-qwen3.lock.json"
OPTIONAL = sorted({module for extra in EXTRAS.values() for module in extra.modules})

# Each sub-command as far as it gets on a machine without GPU, hub and images, and the extra that stops it
# before that; None needs none. {t} is a directory with model, checkpoint, engine and gateway.json.
COMMANDS: dict[str, tuple[str, str | None]] = {
    "lock": ("acme/none -o {t}/lock.json", None),
    "fetch": ("{lock} -o {t}/fetched", None),
    "fetch-file": ("acme/none " + "0" * 40 + " config.json -o {t}/file --sha256 " + "0" * 64, None),
    "fetch-tree": ("acme/none " + "0" * 40 + " -o {t}/tree", None),
    "check-facts": ("{t}/none --repo a/b", None),
    "verify": ("{t}/engine", None),
    "sign": ("{t}/engine --key {t}/none", None),
    "inspect": ("{model}", None),
    "compare": ("{model}", None),
    "completion": ("bash", None),
    "pin": ("acme/none --directory {t}/out", None),
    "target": ("", None),
    "plan": ("{model} --target h200", None),
    "calibrate": ("{model} -o {t}/calibration", "quantize"),
    "quantize": ("{model} --format int4_wo -o {t}/quantized", "quantize"),
    "convert": ("{t}/gpt2 --converter modelopt -o {t}/converted", "quantize"),
    "verify-checkpoint": ("{t}/checkpoint", None),
    "build": ("{t}/checkpoint --kind reference --model {model} -o {t}/built", "reference"),
    "reference": ("{model} -o {t}/answers", "reference"),
    "gate": ("{t}/engine --reference {t}/answers", "reference"),
    "check": ("{t}/engine", None),
    "runtime": ("list", None),
    "runner": ("{t}/none", None),
    "cache": ("list", None),
    "edgellm-export": ("{model} -o {t}/export", "edgellm"),
    "edgellm-build": ("{t}/none -o {t}/edge", None),
    "edgellm-serve": ("{t}/none", None),
    "rtx-build": ("{t}/checkpoint --model {model} -o {t}/rtx", "rtx"),
    "triton-repo": ("{t}/engine -o {t}/repository", "serve"),
    "tritonserver": ("-o {t}/tritonserver --wheel {t}/none", None),
    "serve": ("{t}/none", None),
    "ready": ("--help", None),
    "rollout": ("--help", None),
    "gateway": ("{t}/gateway.json", "gateway"),
    "up": ("{model}", "gateway"),
    "doctor": ("--offline", None),
    "bench": ("http://127.0.0.1:9/v1", None),
    "chat": ("--url http://127.0.0.1:9/v1", None),
}


# Finds nothing of the optional libraries, as where they are not installed, and runs the command.
BLOCKED = """
import sys
blocked = sys.argv[1].split(",")
class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker)
from enginix import optional_libraries
from enginix.cli import main
# The Python of the tests may be in the Nix store, where nothing can be installed; users of pip have another.
optional_libraries.is_in_nix_store = lambda *_: False
optional_libraries.find_spec = lambda _: True
"""
RUN = "sys.exit(main(sys.argv[2:]))"
# Runs the commands of standard input, each in a process of its own, and writes their exit codes and errors.
# NumPy, which most of them load, is loaded once for all.
RUN_EACH = """
import gc, json, os, tempfile
import numpy
gc.freeze()
ended = {}
for words in json.load(sys.stdin):
    with tempfile.TemporaryFile() as error:
        process = os.fork()
        if process == 0:
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os.dup2(error.fileno(), 2)
            code = 70
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code or 0
            finally:
                sys.stderr.flush()
                os._exit(code)  # the end of an interpreter costs as much as most commands
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        error.seek(0)
        ended[words[0]] = code, error.read().decode()
json.dump(ended, sys.stdout)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and an engine of the tiny model, made by a core environment's own commands."""
    there = tmp_path_factory.mktemp("inputs")
    assert cli.main(["convert", str(MODEL), "-o", str(there / "checkpoint")]) == 0
    (there / "engine").mkdir()
    Manifest("engine", "tiny", kind="reference").write(there / "engine")
    shutil.copytree(there / "checkpoint", there / "engine/checkpoint")
    (there / "gpt2").mkdir()
    (there / "gpt2/config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}')
    shutil.copyfile(MODEL / "model.safetensors", there / "gpt2/model.safetensors")
    (there / "key").write_text("sk-0123456789abcdef0123456789abcdef\n")
    (there / "key").chmod(0o600)
    (there / "gateway.json").write_text(
        json.dumps(
            {
                "version": 1,
                "name": "gateway",
                "keyFile": str(there / "key"),
                "models": {"tiny": [{"kind": "triton", "url": "http://127.0.0.1:1", "model": "ensemble"}]},
            }
        )
    )
    return there


def _words(command: str, inputs: Path) -> list[str]:
    return [command, *shlex.split(COMMANDS[command][0].format(t=inputs, model=MODEL, lock=LOCK))]


def _check(command: str, code: int, stderr: str) -> None:
    extra = COMMANDS[command][1]
    assert code != 70 and "unexpected" not in stderr and "Traceback" not in stderr, stderr
    if extra is not None:
        assert code == 5 and f"needs the extra {extra!r}" in stderr, stderr
        assert re.search(rf"fix: .*pip install .*\[{extra}\]", stderr), stderr


def test_every_command_has_a_row() -> None:
    assert set(COMMANDS) == set(command_table.COMMANDS)


def _environment(inputs: Path, **more: str) -> dict[str, str]:
    """No hub is asked, and the user's data directory is empty."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "XDG_DATA_HOME": str(inputs / "data"),
        "XDG_CACHE_HOME": str(inputs / "cache"),
        **more,
    }


@pytest.fixture(scope="module")
def ended(inputs: Path) -> dict[str, tuple[int, str]]:
    """Exit code and errors of each command where no optional library is installed."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + RUN_EACH, ",".join(OPTIONAL)],
        env=_environment(inputs, PYTHONPATH=str(ROOT / "python")),
        input=json.dumps([_words(command, inputs) for command in COMMANDS]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {command: (code, error) for command, (code, error) in json.loads(done.stdout).items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_optional_libraries(command: str, ended: dict[str, tuple[int, str]]) -> None:
    # These look into an environment, not into this process.
    library = {"gateway": "orjson", "edgellm-export": "tensorrt_edgellm"}.get(command)
    if library and find_spec(library):
        pytest.skip(f"this environment has {library}; test_in_an_environment_of_core_alone has not")
    _check(command, *ended[command])


@pytest.mark.slow
def test_in_an_environment_of_core_alone(core_environment: Path, inputs: Path) -> None:
    """The wheel without extras: every command, and the fix is pip's way to the very wheel."""
    program = core_environment / "bin/enginix"
    env = {k: v for k, v in _environment(inputs).items() if k != "PYTHONPATH"}
    for command in COMMANDS:
        words = [program, *_words(command, inputs)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        _check(command, done.returncode, done.stderr)
        if COMMANDS[command][1]:
            fix = shlex.split(done.stderr.split("fix: ")[1])
            assert Path(fix[0]).parent == core_environment / "bin" and fix[1:4] == ["-m", "pip", "install"]
            assert (
                re.fullmatch(rf".*\.whl\[{COMMANDS[command][1]}\]", fix[4])
                and Path(fix[4].split("[")[0]).exists()
            )


@pytest.mark.parametrize("library", ["numpy", "huggingface_hub"])
def test_a_library_of_core(library: str, inputs: Path, tmp_path: Path) -> None:
    assert library in CORE
    words = ["convert", str(MODEL), "--dtype", "float32", "-o", str(tmp_path / "out")]
    if library == "huggingface_hub":
        words = ["lock", "acme/none", "-o", str(tmp_path / "lock.json")]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + RUN, library, *words],
        env=_environment(inputs, PYTHONPATH=str(ROOT / "python")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5 and f"{library} is not installed" in done.stderr, done.stderr
    assert re.search(r"fix: .*pip install .*/python$", done.stderr.strip())


def test_a_library_that_nobody_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_libraries, "is_in_nix_store", lambda *_: False)
    monkeypatch.setattr(optional_libraries, "find_spec", lambda _: True)
    missing = optional_libraries.missing_library(ModuleNotFoundError("no", name="yarl.deep"), "gateway")
    assert missing is not None and missing.exit_code == 5 and "install yarl" in str(missing.fix)


def test_a_fault_of_enginix_stays_one() -> None:
    for name in ("enginix.cli", "json", "enginix.cli.conversion.convert"):
        assert optional_libraries.missing_library(ModuleNotFoundError("no", name=name), "convert") is None


def test_a_package_that_leaves_a_stage_out() -> None:
    error = ModuleNotFoundError("no", name="enginix.cli.nothing")
    missing = optional_libraries.missing_library(error, "nothing")
    assert missing is not None and missing.exit_code == 5 and "leaves enginix nothing out" in missing.what


@pytest.mark.parametrize(
    ("patches", "start"),
    [
        (
            {"_find_install_source": lambda: "/src dir/python"},
            "{python} -m pip install '/src dir/python[serve]'",
        ),
        ({"_find_install_source": lambda: None}, "{python} -m pip install "),
        (
            {"is_in_nix_store": lambda _: True},
            f"run it from the flake: nix run {ROOT}#enginix -- serve",
        ),
        (
            {"_find_install_source": lambda: "/s", "find_spec": lambda _: None},
            "uv pip install --python {python} '/s[serve]'",
        ),
    ],
)
def test_the_command_that_installs(
    patches: dict[str, object], start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"is_in_nix_store": lambda _: False, "find_spec": lambda _: True}
    for name, value in {**ours, **patches}.items():
        monkeypatch.setattr(optional_libraries, name, value)
    assert optional_libraries.format_install_command("serve", "serve").startswith(
        start.format(python=sys.executable)
    )


def test_the_gateway_process_whose_litellm_needs_more(inputs: Path, tmp_path: Path) -> None:
    """Its start is another process, whose LiteLLM may import what the extra did not know of."""
    from enginix.gateway import launch

    (tmp_path / "litellm").mkdir()
    (tmp_path / "litellm/__init__.py").write_text("import a_library_of_litellm\n")
    (tmp_path / "httpx.py").touch()
    options = launch.GatewayOptions(str(inputs / "gateway.json"), "127.0.0.1", 0, 1, 1)
    done = subprocess.run(
        launch.build_gateway_command(Path(sys.executable), options),
        env=_environment(inputs, PYTHONPATH=f"{ROOT / 'python'}{os.pathsep}{tmp_path}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5 and "a_library_of_litellm is not installed" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_later_collections_pass_over_what_an_import_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many_objects.py").write_text("OBJECTS = [[] for _ in range(1000)]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = gc.get_freeze_count()
    with pause_garbage_collector():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == before
    with pause_garbage_collector():
        importlib.import_module("many_objects")
    assert gc.isenabled() and gc.get_freeze_count() >= before + 1000
