"""Servers inside an image, of one rank and of several, as real processes: tests/standin in the image's place.

tritonserver, mpirun and the image are stand-ins; bubblewrap, signals, ports and the command are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enginix.errors import EXIT_CHECK_FAILED, EXIT_MACHINE, EXIT_USAGE
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.manifest import Manifest
from enginix.ports import reserve_ports
from enginix.process_group import list_descendants
from enginix.triton.options import RepositoryOptions

TESTS = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
SITE = "/opt/venv-tritonserver/lib/python3.12/site-packages"


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in image."""
    if not shutil.which("bwrap") or not shutil.which("busybox"):
        pytest.skip("bubblewrap and busybox make the stand-in image")
    out = tmp_path_factory.mktemp("image") / "rootfs"
    subprocess.run(["bash", str(TESTS / "standin" / "rootfs.sh"), str(out), "1.2.1", SITE], check=True)
    return out


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(free: int = 143000, capability: str = "9.0", count: int = 2, version: str = "590.44.01") -> Path:
        out = tmp_path_factory.mktemp("driver") / "driver"
        script = TESTS / "standin" / "driver.sh"
        values = ["NVIDIA H200", capability, "143771", str(free), version, str(count)]
        subprocess.run(["bash", str(script), str(out), *values], check=True)
        return out

    return make


@pytest.fixture
def repository(served_engine: Path, tmp_path: Path) -> Callable[..., Path]:
    """A repository of an engine of that shape, with plans of zeros."""

    def make(ranks: int = 1, kind: str = "tensorrt", plan: int = 4096, config: str = "{}") -> Path:
        engine = tmp_path / "engine"
        (engine / "engine").mkdir(parents=True)
        (engine / "engine" / "config.json").write_text(config)
        for rank in range(ranks):
            with (engine / "engine" / f"rank{rank}.engine").open("wb") as f:
                f.truncate(plan)
        (engine / "model").mkdir()
        (engine / "llm_args.yaml").write_text("{}")
        shutil.copytree(served_engine / "tokenizer", engine / "tokenizer")
        target = {"name": "h200", "gpu": "NVIDIA H200", "sm": 90, "count": ranks}
        runtime = {"id": "trtllm-1.2.1", "driverFloor": "580.65.06"}
        Manifest(artefact="engine", name="m", kind=kind, runtime=runtime, target=target).write(engine)
        build_triton_repository(
            engine,
            tmp_path / "repository",
            RepositoryOptions(max_batch_size=4) if kind == "tensorrt" else RepositoryOptions(),
        )
        return tmp_path / "repository"

    return make


def command(repository: Path, rootfs: Path, driver: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "enginix", "serve", str(repository), "--rootfs", str(rootfs)]
    # A stop waits for five Python models, a second each.
    return [*words, "--driver", str(driver), "--exit-timeout", "20", *more]


def as_root(repository: Path, rootfs: Path, driver: Path, place: Path, **variables: str) -> list[str]:
    """Run in an image that is the root already, as in a container or a unit.

    Args:
        place: seen inside as outside, and written to.
        variables: of the command.
    """
    root = place / "root"
    shutil.copytree(rootfs, root, symlinks=True)
    # An environment is links: to the store paths of its wheels, and to the interpreter.
    interpreter = Path(sys.executable).resolve()
    packages = ["/nix/store"] if sys.prefix.startswith("/nix/store/") else [sys.prefix]
    packages += [p for p in sys.path if p.endswith("site-packages") and not p.startswith("/nix/store/")]
    readable = [Path(p) for p in (*packages, "/usr/lib", "/usr/local/lib", TESTS, TESTS.parent / "python")]
    readable.append(driver)
    words = ["bwrap", "--unshare-pid", "--unshare-user", "--unshare-uts", "--hostname", "pod-0", "--clearenv"]
    words += ["--die-with-parent", "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev"]
    words += ["--tmpfs", "/tmp", "--bind", str(place), str(place)]
    for mounted in (Path("/proc"), Path("/dev"), place, *readable):
        (root / str(mounted).lstrip("/")).mkdir(parents=True, exist_ok=True)
    if not any(interpreter.is_relative_to(p) for p in readable):
        (root / str(interpreter).lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / str(interpreter).lstrip("/")).touch()
        readable.append(interpreter)
    for mounted in readable:
        words += ["--ro-bind", str(mounted), str(mounted)]
    inside = {"PATH": "/opt/venv-tritonserver/bin:/usr/bin:/bin", "HOME": "/tmp"}
    inside["PYTHONPATH"] = str(TESTS.parent / "python")
    for name, value in (inside | variables).items():
        words += ["--setenv", name, value]
    words += ["--", sys.executable, "-m", "enginix", "serve", str(repository), "--driver", str(driver)]
    words += ["--tritonserver", "/opt/tritonserver", "--model-runtime", "trtllm-1.2.1"]
    # The stand-in image has no PyTorch.
    return [*words, "--python", str(Path(sys.executable).with_name("python3"))]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS.parent / "python"), "SECRET": "hf_secret"}


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=600)


@dataclass
class Serving:
    """A command that serves."""

    process: subprocess.Popen[str]
    http: int
    lines: list[str]

    def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}{path}", json.dumps(body or {}).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(300)


def serving(
    repository: Path, rootfs: Path, driver: Path, *more: str
) -> contextlib.AbstractContextManager[Serving]:
    return started(command(repository, rootfs, driver, *more))


@contextlib.contextmanager
def started(words: list[str]) -> Iterator[Serving]:
    """A command, on free ports, once it answers."""
    http, grpc, metrics = reserve_ports("127.0.0.1", [("http", 0), ("grpc", 0), ("metrics", 0)])
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    process = subprocess.Popen(
        [*words, *ports],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if " answers at " in line:
                ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 300
        while not ready.wait(0.05):
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
        yield Serving(process, http, lines)
    finally:
        process.kill()
        process.wait()
        reader.join(5)


def left(mark: str) -> list[str]:
    """Processes that name this place."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_text("utf-8", "replace")
            if mark in text and "standin_" in text:
                found.append(text)
    return found


def prefix_of(server: Serving) -> str:
    """The word that names a server's shared memory: no other server has it, here or in another checkout."""
    lines = (Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace") for pid in below(server.process.pid))
    return next(w for line in lines for w in line.split("\0") if "prefix-name" in w)


def below(pid: int) -> list[int]:
    return [p for p in list_descendants(pid) if Path(f"/proc/{p}/cmdline").exists()]


@pytest.mark.parametrize("ranks", [1, 2], ids=["one-rank", "two-ranks"])
def test_it_serves_and_a_stop_answers_what_was_asked(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path], ranks: int
) -> None:
    with serving(repository(ranks), rootfs, driver()) as server:
        status, answer = server.post("/v2/models/ensemble/generate", {"text_input": "a"})
        assert (status, answer["text_output"]) == (200, "stand-in: a")
        asked: list[Any] = []
        slow = threading.Thread(
            target=lambda: asked.append(server.post("/v2/models/ensemble/generate", {"text_input": "slow"}))
        )
        slow.start()
        time.sleep(0.5)
        prefix = prefix_of(server)
        assert server.end() == 0, "".join(server.lines)
        slow.join()
        assert asked == [(200, {"text_output": "stand-in: slow"})]
    assert not left(prefix.rsplit("r", 1)[0])


def test_the_llm_api_has_one_process_and_starts_its_own(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path]
) -> None:
    path = repository(2, "llmapi")
    with serving(path, rootfs, driver()) as server:
        assert server.post("/v2/models/tensorrt_llm/generate", {"text_input": "a"})[0] == 200
        assert server.end() == 0
    found = json.loads(run(command(path, rootfs, driver(), "--dry-run", "--json")).stdout)
    assert "mpirun" not in found["command"]
    assert found["environment"]["TLLM_WORKER_USE_SINGLE_PROCESS"] == "0"


def test_the_exact_command_and_environment(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path]
) -> None:
    done = run(
        command(
            repository(2),
            rootfs,
            driver(),
            "--gpus",
            "1,0",
            "--env",
            "NCCL_DEBUG=INFO",
            "--dry-run",
            "--json",
        )
    )
    found = json.loads(done.stdout)
    words = found["command"]
    assert words[:2] == ["/opt/venv-tritonserver/bin/mpirun", "--tag-output"]
    split = words.index(":")
    first, second = words[:split], words[split:]
    assert second[:3] == [":", "-n", "1"]
    assert {"--model-control-mode=none", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"} <= set(first)
    assert {"--model-control-mode=explicit", "--load-model=tensorrt_llm"} <= set(second)
    assert {f"--allow-{n}=false" for n in ("http", "grpc", "metrics")} <= set(second)
    assert not any("-port=" in w or "-address=" in w for w in second)
    shm = [w for w in words if "shm-region-prefix-name" in w]
    assert len(shm) == len(set(shm)) == 2
    assert found["environment"]["CUDA_VISIBLE_DEVICES"] == "1,0"
    # NCCL finds out by itself; only what was asked for is set.
    assert {k: v for k, v in found["environment"].items() if k.startswith("NCCL")} == {"NCCL_DEBUG": "INFO"}
    # 2.68 has the option; what it lacks is closed by a key that the plan does not show.
    assert "--allow-client-shm=false" in first
    key = "--http-restricted-api=shared-memory,model-repository,trace,logging:enginix-key=$KEY"
    assert key in first
    assert "hf_secret" not in done.stdout


def test_client_shared_memory_is_closed_but_for_the_key(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("0123456789abcdef-key\n")
    with serving(repository(), rootfs, driver(), "--admin-key-file", str(tmp_path / "key")) as server:
        path = "/v2/systemsharedmemory/region/x/register"
        assert server.post(path)[0] == 403
        assert server.post(path, **{"enginix-key": "0123456789abcdef-key"})[0] == 200
        assert "0123456789abcdef" not in "".join(server.lines)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("hang:1", "rank 1: not ready after"),
        ("die:1", "rank 1, tensorrt_llm: failed to load: out of memory on this rank"),
        ("kill:1", "rank 1: ended; its last line: loading: tensorrt_llm:1"),
        ("hang:0", "rank 0: not ready after"),
        ("die:0", "rank 0, tensorrt_llm: failed to load"),
    ],
)
def test_a_rank_that_fails_at_start_is_named(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path], how: str, expected: str
) -> None:
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    path = repository(2)
    words = command(path, rootfs, driver(), *ports, "--start-timeout", "10", "--env", f"STANDIN={how}")
    done = run(words)
    assert done.returncode == EXIT_MACHINE
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert expected in error
    if how.startswith("hang"):
        assert "its last line: NCCL INFO Bootstrap" in error
    assert not left(str(path))


@pytest.mark.parametrize("deaf", [[], ["--env", "STANDIN_DEAF=1"]], ids=["mpirun-notices", "mpirun-deaf"])
def test_a_rank_that_dies_while_serving_ends_the_server(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path], deaf: list[str]
) -> None:
    with serving(repository(2), rootfs, driver(), "--env", "STANDIN=lose:1", *deaf) as server:
        assert server.process.wait(300) == EXIT_MACHINE
    said = "".join(server.lines)
    assert "error: rank 1: " in said
    assert "illegal memory access" in said


def test_kill_9_of_the_command_leaves_nothing(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path]
) -> None:
    with serving(repository(2), rootfs, driver()) as server:
        prefix = prefix_of(server)
        server.process.kill()
        deadline = time.monotonic() + 300
        while (rest := left(prefix.rsplit("r", 1)[0])) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not rest


@pytest.mark.parametrize(
    ("machine", "more", "status", "expected"),
    [
        ({"capability": "10.0"}, [], EXIT_CHECK_FAILED, "sm: built for 90, here NVIDIA H200 (SM 100)"),
        ({"version": "535.1"}, [], EXIT_CHECK_FAILED, "driver: built for 580.65.06 or later, here 535.1"),
        (
            {"free": 10},
            [],
            EXIT_MACHINE,
            "GPU 0: 10.0 MiB of GPU memory free, 64.0 MiB needed for the weights",
        ),
        ({}, ["--gpus", "0"], EXIT_MACHINE, "--gpus: 1 GPUs for an engine of 2 ranks"),
        ({}, ["--gpus", "0,7"], EXIT_MACHINE, "--gpus: no GPU 7"),
        ({"count": 1}, [], EXIT_CHECK_FAILED, "count: built for 2, here 1"),
        ({}, ["--triton-flag", "http-thread-coun=1"], EXIT_USAGE, "did you mean http-thread-count?"),
        ({}, ["--triton-flag", "allow-sagemaker=true"], EXIT_USAGE, "not to be set"),
        ({}, ["--env", "LD_PRELOAD=/x"], EXIT_USAGE, "LD_PRELOAD is set by enginix"),
        ({}, ["--tritonserver", "/x"], EXIT_USAGE, "exclude each other"),
        ({}, ["--hosts", "a:1"], EXIT_USAGE, "1 slots for an engine of 2 ranks"),
        ({}, ["--hosts", "a:1,b:1"], EXIT_USAGE, "--rootfs makes a sandbox on this machine alone"),
        ({}, ["--hosts", "a"], EXIT_USAGE, "is not HOST:SLOTS"),
        ({}, ["--hostfile", "/nowhere"], EXIT_USAGE, "/nowhere: cannot be read"),
        ({}, ["--worker", "2"], EXIT_USAGE, "slots that --hosts of the first machine gives this one"),
        ({}, ["--worker", "1"], EXIT_USAGE, "a sandbox, in which another machine cannot start ranks"),
    ],
)
def test_the_preflight(
    repository: Callable[..., Path],
    rootfs: Path,
    driver: Callable[..., Path],
    machine: Any,
    more: list[str],
    status: int,
    expected: str,
) -> None:
    path = repository(2, plan=64 << 20)
    done = run(command(path, rootfs, driver(**machine), "--check", "--json", "--http-port", "0", *more))
    error = json.loads(done.stdout)
    assert (done.returncode, error["exitCode"]) == (status, status)
    assert expected in f"{error['where']}: {error['what']} {error['fix']}"
    assert "Traceback" not in done.stderr


def test_a_preflight_that_finds_nothing(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path]
) -> None:
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    flags = ["--triton-flag", "http-thread-count=16", "--triton-flag", "grpc-infer-thread-count=4"]
    done = run(command(repository(2), rootfs, driver(), *ports, *flags, "--check", "--json"))
    found = json.loads(done.stdout)
    assert (found["ok"], found["tritonserver"], found["ranks"]) == (True, "2.68.0", 2)


def test_an_engine_for_several_machines_is_not_served_by_one(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path], tmp_path: Path
) -> None:
    path = repository(2, config='{"pretrained_config": {"mapping": {"gpus_per_node": 1}}}')
    one = ["--hosts", f"{socket.gethostname()}:2"]
    for more in ([], one):
        done = run(command(path, rootfs, driver(), "--check", "--http-port", "0", *more))
        assert done.returncode == EXIT_USAGE, done.stderr
        assert "2 ranks for machines of 1 GPUs" in done.stderr
        assert "--gpus-per-node 2" in done.stderr


def test_an_image_of_another_runtime_or_without_the_backend(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path], tmp_path: Path
) -> None:
    path = repository()
    done = run(command(path, rootfs, driver(), "--check", "--model-runtime", "trtllm-1.1.0"))
    assert done.returncode != 0
    assert "the engine is for runtime trtllm-1.2.1, the server's runtime is trtllm-1.1.0" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "bin/tritonserver is missing" in run(command(path, empty, driver(), "--check")).stderr
    without = tmp_path / "without"
    shutil.copytree(rootfs / "opt" / "tritonserver", without / "opt" / "tritonserver")
    shutil.rmtree(without / "opt" / "tritonserver" / "backends" / "tensorrtllm")
    assert "libtriton_tensorrtllm.so is missing" in run(command(path, without, driver(), "--check")).stderr


def test_several_ranks_need_a_launcher(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path], tmp_path: Path
) -> None:
    without = tmp_path / "without"
    shutil.copytree(rootfs / "opt" / "tritonserver", without / "opt" / "tritonserver")
    path = repository(2)
    assert (
        "mpirun is missing, which starts several ranks"
        in run(command(path, without, driver(), "--check")).stderr
    )
    # Where NVIDIA's images have it though their PATH does not say it.
    launcher = without / "opt" / "hpcx" / "ompi" / "bin" / "mpirun"
    launcher.parent.mkdir(parents=True)
    launcher.touch(mode=0o755)
    assert "/opt/hpcx/ompi/bin/mpirun --tag-output" in " ".join(
        json.loads(run(command(path, without, driver(), "--dry-run", "--json")).stdout)["command"]
    )


def test_ranks_on_two_machines_as_in_containers_of_the_image(
    repository: Callable[..., Path], rootfs: Path, driver: Callable[..., Path], tmp_path: Path
) -> None:
    path = repository(2, config='{"pretrained_config": {"mapping": {"gpus_per_node": 1}}}')
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {sys.executable} {TESTS / "standin" / "kubectl.py"} "$@"\n')
    kubectl.chmod(0o755)
    (tmp_path / "cluster.json").write_text('{"pod-0-1": "runs"}')
    variables = {"KUBECONFIG": str(tmp_path / "cluster.json"), "ENGINIX_KUBECTL": str(kubectl)}
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    words = [*as_root(path, rootfs, driver(count=1), tmp_path, **variables), *ports]
    worker = run([*words, "--worker", "1", "--check"])
    assert worker.returncode == 0, worker.stderr
    words += ["--hosts", "pod-0:1,pod-0-1:1", "--agent", "kubectl", "--env", "STANDIN=lose:1"]
    done = run(words)
    assert " answers at " in done.stderr, done.stderr
    assert "error: rank 1 on pod-0-1: " in done.stderr, done.stderr
    assert "illegal memory access" in done.stderr
    assert done.returncode == EXIT_MACHINE
