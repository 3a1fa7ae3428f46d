"""Ranks on several machines: mpirun, orted, kubectl and tritonserver are stand-ins, as real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix.errors import EnginixError, MachineError, UsageError
from enginix.files import dump_json
from enginix.ports import reserve_ports
from enginix.serve import hosts, ranks
from enginix.serve.client import TritonClient
from enginix.serve.hosts import Agent, Host, HostError
from enginix.serve.launch import Endpoints, LaunchSpec, describe_launch
from enginix.serve.readiness import await_ready
from enginix.serve.supervisor import StartError, SupervisedServer, explain_exit
from enginix.serve.tritonserver import TritonServer

TESTS = Path(__file__).parents[2]
HERE = socket.gethostname()
TWO = (Host(HERE, 2), Host("pod-1", 2))


def test_hosts_are_read_from_a_list_and_from_a_file(tmp_path: Path) -> None:
    expected = (Host("a", 8), Host("b.example", 8))
    assert hosts.parse_hosts("a:8, b.example:8") == expected
    (tmp_path / "hosts").write_text("# two machines\na slots=8\n\nb.example slots = 8 # the other\n")
    assert hosts.read_hostfile(tmp_path / "hosts") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "'a' is not HOST:SLOTS"),
        ("a:8,", "'' is not HOST:SLOTS"),
        ("a:0", "'a:0' is not HOST:SLOTS"),
        ("-oProxyCommand=x:8", "is not HOST:SLOTS"),
        ("a:8,a:8", "a is named twice"),
        ("a;b:8", "is not HOST:SLOTS"),
    ],
)
def test_other_lists_are_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        hosts.parse_hosts(text)


@given(st.text(max_size=40))
def test_whatever_is_given_is_read_or_refused(text: str) -> None:
    try:
        found = hosts.parse_hosts(text)
    except UsageError:
        return
    assert found and all(h.slots > 0 and not h.name.startswith("-") for h in found)


@pytest.mark.parametrize("text", ["", "# nothing\n", "a 8\n", "a slots=8\nb slots\n", "a slots=x\n"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UsageError, match="hosts"):
        hosts.read_hostfile(tmp_path / "hosts")
    with pytest.raises(UsageError, match="cannot be read"):
        hosts.read_hostfile(tmp_path / "none")


def engine_of(tmp_path: Path, each: int | None) -> Path:
    mapping = {} if each is None else {"pretrained_config": {"mapping": {"gpus_per_node": each}}}
    (tmp_path / "engine").mkdir(exist_ok=True)
    (tmp_path / "engine" / "config.json").write_text(dump_json(mapping))
    return tmp_path


@pytest.mark.parametrize(
    ("machines", "kind", "in_image", "each", "expected"),
    [
        (TWO, "reference", False, 2, "it is one process"),
        (TWO, "llmapi", False, 2, "its LLM class starts its own processes"),
        ((Host(HERE, 2), Host("b", 1)), "tensorrt", False, 2, "3 slots for an engine of 4 ranks"),
        (TWO, "tensorrt", True, 2, "--rootfs makes a sandbox on this machine alone"),
        ((Host("elsewhere", 2), Host("b", 2)), "tensorrt", False, 2, "the first host is elsewhere"),
        ((Host(HERE, 3), Host("b", 1)), "tensorrt", False, 2, f"{HERE} has 3 slots"),
        # Where the engine does not say it, it is TensorRT-LLM's default.
        (TWO, "tensorrt", False, None, "the engine counts 8 GPUs a machine"),
    ],
)
def test_machines_that_an_engine_cannot_have(
    machines: tuple[Host, ...], kind: str, in_image: bool, each: int | None, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=expected):
        hosts.check_hosts(machines, 4, kind, in_image, engine_of(tmp_path, each))


def test_machines_that_it_can_have(tmp_path: Path) -> None:
    hosts.check_hosts(TWO, 4, "tensorrt", False, engine_of(tmp_path, 2))
    fours = (Host(HERE, 4), Host("pod-1", 4))
    hosts.check_hosts(fours, 8, "tensorrt", False, engine_of(tmp_path, 4))
    with pytest.raises(UsageError, match=f"{HERE} has 4 slots, and the engine counts 8 GPUs") as e:
        hosts.check_hosts(fours, 8, "tensorrt", False, engine_of(tmp_path, 8))
    assert "another enginix convert --gpus-per-node" in str(e.value)
    # One machine is as before, in a sandbox or not.
    hosts.check_hosts((Host("any", 4),), 4, "tensorrt", True, engine_of(tmp_path, None))


def test_one_machine_for_an_engine_of_several(tmp_path: Path) -> None:
    hosts.check_single_host(4, engine_of(tmp_path, 4))
    hosts.check_single_host(8, engine_of(tmp_path, None))
    with pytest.raises(UsageError, match="9 ranks for machines of 8 GPUs"):
        hosts.check_single_host(9, engine_of(tmp_path, None))
    with pytest.raises(UsageError, match="rank 4 would be on rank 0's GPU"):
        hosts.check_single_host(8, engine_of(tmp_path, 4))


def test_an_agent_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINIX_KUBECTL", "/nowhere/kubectl")
    with pytest.raises(MachineError, match="no program /nowhere/kubectl"):
        hosts.find_agent("kubectl")
    with pytest.raises(MachineError, match="no program no-such-agent"):
        hosts.find_agent("no-such-agent")


def test_the_exact_command_of_several_machines() -> None:
    words = ranks.build_mpirun_command(
        "/m/mpirun", [["t", str(n)] for n in range(4)], TWO, "/s/agent", ["NCCL_DEBUG"]
    )
    words = [w for w in words if w != "--allow-run-as-root"]
    assert words[:8] == [
        *("/m/mpirun", "--tag-output"),
        *("--mca", "plm_rsh_agent", "/s/agent", "--mca", "plm_rsh_no_tree_spawn", "1"),
    ]
    text = " ".join(words[8:])
    here, there = f"--host {HERE}:2 -n 1 t", "--host pod-1:2 -x NCCL_DEBUG -n 1 t"
    assert text == f"{here} 0 : {here} 1 : {there} 2 : {there} 3"
    dotted = ranks.build_mpirun_command("m", [["t"], ["t"]], (Host("a.b", 1), Host("c", 1)), "/s/agent")
    assert "orte_keep_fqdn_hostnames" in dotted
    assert "--host" not in ranks.build_mpirun_command("m", [["t"], ["t"]], (Host(HERE, 2),))


def test_a_dry_run_says_what_each_machine_gets(plan: LaunchSpec) -> None:
    found = describe_launch(replace(plan, environ={"NCCL_DEBUG": "INFO"}))
    words = found["command"]
    assert words[words.index("plm_rsh_agent") + 1] == "$STATE/agent"
    seen = [w.removeprefix("--model-repository=") for w in words if w.startswith("--model-repository=")]
    assert seen == ["$STATE/models"] * 2 + [str(plan.repository)] * 2
    exported = {words[i + 1] for i, w in enumerate(words) if w == "-x"}
    assert {"NCCL_DEBUG", "PATH"} <= exported and not {"HOME", "TMPDIR"} & exported
    # What an agent needs is not for ranks.
    assert not {"KUBECONFIG", "KUBERNETES_SERVICE_HOST"} & set(found["environment"])


@pytest.mark.parametrize("name", ["ssh", "kubectl", "other"])
def test_the_agents_script_passes_words_and_names_a_failure(name: str, tmp_path: Path) -> None:
    program = tmp_path / "pro gram"
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\nexit 3\n')
    program.chmod(0o755)
    agent = Agent(name, str(program))
    script = tmp_path / "agent"
    script.write_text(agent.script())
    done = subprocess.run(
        ["sh", str(script), "pod-1", "PATH=/x:$PATH ;", "orted -x 'a b'"],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = agent.words("pod-1", "PATH=/x:$PATH ; orted -x 'a b'")[1:]
    assert done.stdout == "".join(f"<{w}>" for w in expected)
    assert done.returncode == 3
    assert hosts.find_failed_host(TWO, done.stderr.splitlines()) == (
        "host pod-1, rank 2 to 3",
        f"{name} ended with status 3",
    )


def test_a_machine_that_mpirun_lost_is_named() -> None:
    lines = [
        "ORTE has lost communication with a remote daemon.",
        "",
        "  HNP daemon   : [[43015,0],0] on node leader",
        "  Remote daemon: [[43015,0],1] on node pod-1",
    ]
    error = explain_exit(lines, 1, TWO)
    assert (error.where, error.what) == ("host pod-1, rank 2 to 3", "mpirun lost its connection to it")
    # A rank that mpirun names says more.
    error = explain_exit([*lines, "  Process name: [[4242,1],3]", "rank 3: out of memory"], 1, TWO)
    assert error.where == "rank 3 on pod-1"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-ins, as programs."""
    out = tmp_path_factory.mktemp("lws")
    shutil.copytree(TESTS / "standin" / "tensorrt_llm", out / "site" / "tensorrt_llm")
    shutil.copytree(TESTS / "standin" / "contract", out / "site" / "tensorrt_llm" / "contract")
    (out / "site" / "tensorrt_llm" / "version.py").write_text('__version__ = "1.2.1"\n')
    (out / "bin").mkdir()
    for name in ("mpirun", "orted", "tritonserver"):
        program(out / "bin" / name, f"export PYTHONPATH={out}/site", f"-m tensorrt_llm.standin_{name}")
    program(out / "bin" / "kubectl", ":", str(TESTS / "standin" / "kubectl.py"))
    for model in ("ensemble", "tensorrt_llm"):
        (out / "repository" / model).mkdir(parents=True)
        (out / "repository" / model / "config.pbtxt").write_text(f'name: "{model}"\n')
    return out


def program(path: Path, before: str, words: str) -> None:
    path.write_text(f'#!/bin/sh\n{before}\nexec {sys.executable} {words} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installation: Path) -> Callable[[str], None]:
    """Says how the Pod pod-1 behaves."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "cluster.json"))
    monkeypatch.setenv("ENGINIX_KUBECTL", str(installation / "bin" / "kubectl"))

    def say(behaviour: str) -> None:
        (tmp_path / "cluster.json").write_text(dump_json({"pod-1": behaviour}))

    say("runs")
    return say


@pytest.fixture
def plan(installation: Path, cluster: Callable[[str], None]) -> LaunchSpec:
    http, grpc, metrics = reserve_ports("127.0.0.1", [("http", 0), ("grpc", 0), ("metrics", 0)])
    return LaunchSpec(
        TritonServer(installation, "trtllm-1.2.1", "2.68.0"),
        installation / "repository",
        Path(sys.executable).with_name("python3"),
        Endpoints("127.0.0.1", http, grpc, metrics),
        exit_timeout=5,
        ranks=4,
        mpirun=str(installation / "bin" / "mpirun"),
        hosts=TWO,
        agent=hosts.find_agent("kubectl"),
    )


def start(
    plan: LaunchSpec, seconds: float = 90, during: Callable[[SupervisedServer], None] = lambda _: None
) -> int:
    assert plan.agent is not None
    needed = [str(Path(plan.mpirun).with_name("orted")), str(plan.server.program), str(plan.repository)]
    hosts.await_hosts(plan.hosts, plan.agent, needed, seconds)
    with SupervisedServer(plan, lambda _: None) as server:
        await_ready(server, TritonClient("127.0.0.1", plan.endpoints.http), None, seconds, "tensorrt")
        during(server)
        return server.stop()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 300
    while (rest := processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not rest


def processes(mark: str = "lws") -> dict[int, list[str]]:
    """Processes of the stand-ins here, on whatever machine they think they are."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text("utf-8", "replace").split("\0")
            environment = (path / "environ").read_text("utf-8", "replace")
        except OSError:
            continue
        if any("tensorrt_llm.standin_" in w or w.endswith("kubectl.py") for w in words) and (
            str(TESTS) in environment or mark in environment
        ):
            found[int(path.name)] = words
    return found


@pytest.mark.slow
def test_ranks_on_two_machines_serve_and_end(plan: LaunchSpec) -> None:
    seen: dict[int, str] = {}

    def look(server: SupervisedServer) -> None:
        for pid, words in processes().items():
            if "tensorrt_llm.standin_tritonserver" in words:
                name = next(w for w in words if w.startswith("--id=")).removeprefix("--id=")
                environment = Path(f"/proc/{pid}/environ").read_text()
                there = "POD=pod-1" in environment
                seen[int(name.removeprefix("rank"))] = "there" if there else "here"
                assert "NCCL_DEBUG=INFO" in environment
                # HOME and links of this machine's private directory are not for the other.
                assert not (there and f"HOME={server._state}" in environment)
                assert (f"--model-repository={plan.repository}" in words) == there
        # Only this machine's are watched as processes.
        assert sorted(ranks.find_running_ranks(server.process.pid, server._prefix)) == [0, 1]

    assert start(replace(plan, environ={"NCCL_DEBUG": "INFO"}), during=look) == 0
    assert seen == {0: "here", 1: "here", 2: "there", 3: "there"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "where", "what"),
    [
        ("die:3", "rank 3 on pod-1, tensorrt_llm", "out of memory on this rank"),
        ("kill:2", "rank 2 on pod-1", "its last line: loading: tensorrt_llm:1"),
        ("hang:2", "rank 2 on pod-1", "its last line: NCCL INFO Bootstrap"),
        ("die:1", f"rank 1 on {HERE}, tensorrt_llm", "out of memory on this rank"),
    ],
)
def test_a_rank_that_fails_is_named_with_its_machine(
    plan: LaunchSpec, how: str, where: str, what: str
) -> None:
    with pytest.raises(StartError) as raised:
        start(replace(plan, environ={"STANDIN": how}), 10 if how.startswith("hang") else 90)
    assert raised.value.where == where
    assert what in raised.value.what


@pytest.mark.slow
def test_a_worker_that_dies_while_serving_ends_the_server(plan: LaunchSpec) -> None:
    with pytest.raises(StartError) as raised:
        start(replace(plan, environ={"STANDIN": "lose:3"}), during=wait)
    assert raised.value.where == "rank 3 on pod-1"
    assert "illegal memory access" in raised.value.what


def wait(server: SupervisedServer) -> None:
    status = server.wait()
    raise explain_exit(server.last_lines(400), status, server.plan.hosts)


@pytest.mark.slow
def test_a_machine_that_is_lost_while_serving_ends_the_server(plan: LaunchSpec) -> None:
    def lose(server: SupervisedServer) -> None:
        for pid, words in processes().items():
            if "tensorrt_llm.standin_orted" in words:
                os.kill(pid, signal.SIGKILL)
        # The machine is gone with all that ran on it.
        for pid, words in processes().items():
            if {"--id=rank2", "--id=rank3"} & set(words) and "tensorrt_llm.standin_tritonserver" in words:
                os.kill(pid, signal.SIGKILL)
        wait(server)

    with pytest.raises(StartError) as raised:
        start(plan, during=lose)
    assert raised.value.where == "host pod-1, rank 2 to 3"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("forbids", 'cannot create resource "pods/exec"'),
        ("absent", 'pods "pod-1" not found'),
        ("hangs", "nothing for"),
    ],
)
def test_a_machine_that_is_not_reached_is_named(
    plan: LaunchSpec, cluster: Callable[[str], None], behaviour: str, expected: str, tmp_path: Path
) -> None:
    cluster(behaviour)
    if behaviour == "absent":
        (tmp_path / "cluster.json").write_text("{}")
    with pytest.raises(HostError) as raised:
        start(plan, 1.5)
    assert raised.value.where == "host pod-1, rank 2 to 3"
    assert expected in raised.value.what
    assert "exec pod-1" in str(raised.value.fix)


@pytest.mark.slow
def test_a_machine_that_comes_later_is_awaited(plan: LaunchSpec, tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{}")
    late = [
        sys.executable,
        "-c",
        "import sys, time; time.sleep(2); open(sys.argv[1], 'w').write('{\"pod-1\": \"runs\"}')",
    ]
    with subprocess.Popen([*late, str(tmp_path / "cluster.json")]):
        assert start(plan) == 0


def test_a_machine_without_what_its_ranks_need_is_named(plan: LaunchSpec) -> None:
    assert plan.agent is not None
    with pytest.raises(HostError, match="has no /nowhere/it is") as raised:
        hosts.await_hosts(plan.hosts, plan.agent, ["/bin/sh", "/nowhere/it is"], 300)
    assert raised.value.where == "host pod-1, rank 2 to 3"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "where", "what"),
    [
        ("drops", "host pod-1, rank 2 to 3", "kubectl ended with status 1"),
        ("sticks", "host pod-1, rank 2 to 3", "kubectl has not started mpirun's daemon there"),
    ],
)
def test_an_agent_that_fails_under_mpirun_is_named(
    plan: LaunchSpec, cluster: Callable[[str], None], behaviour: str, where: str, what: str
) -> None:
    cluster(behaviour)
    with pytest.raises(EnginixError) as raised:
        start(plan, 10 if behaviour == "sticks" else 90)
    assert str(raised.value.where).startswith(where)
    assert what in raised.value.what


def test_a_worker_waits_and_collects_what_is_orphaned(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = (
        "import ctypes, subprocess, sys\nfrom pathlib import Path\n"
        "from enginix.serve.worker import wait_as_worker\n"
        # As the first process of a container: orphans become its children.
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
        "subprocess.run(['sh', '-c', 'sleep 0.3 & exit 0'])\n"
        "sys.exit(wait_as_worker(Path(sys.argv[1])))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent / "python")}
    with subprocess.Popen([sys.executable, "-c", script, str(ready)], env=env) as process:
        deadline = time.monotonic() + 300
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while children.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert children.read_text() == "" and process.poll() is None
        process.terminate()
        assert process.wait(300) == 0
    assert not ready.exists()


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_worker_ends_when_its_ranks_have(tmp_path: Path, again: bool) -> None:
    ready, left = tmp_path / "ready", tmp_path / "left"
    os.mkfifo(left)
    # A rank that ends when it is told to.
    script = (
        "import subprocess, sys\nfrom pathlib import Path\n"
        "from enginix.serve.worker import wait_as_worker\n"
        "subprocess.Popen(['sh', '-c', 'read word <\"$1\"', 'rank', sys.argv[2]])\n"
        "sys.exit(wait_as_worker(Path(sys.argv[1])))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent / "python")}
    words = [sys.executable, "-c", script, str(ready), str(left)]
    with subprocess.Popen(words, env=env, start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        while ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        # A probe sees that it ends, and its rank runs on.
        assert not ready.exists() and process.poll() is None
        if again:
            process.terminate()
        else:
            left.write_text("end\n")
        assert process.wait(300) == 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
