"""Several machines: the ranks of each, and a start of mpirun's daemon on the others.

``mpirun`` (Open MPI 4.1) starts ``orted`` on a host by calling ``plm_rsh_agent`` as it would call ssh: the
host's name, then the command. Here that is a small script around ssh, around ``kubectl exec`` (as NVIDIA's
tutorial on Triton over several nodes does it), or around a program of the user's; it names the host that
failed, which mpirun does not. A host is tried in the same way before mpirun is started, because mpirun waits
without end.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginix.errors import MachineError, UsageError
from enginix.files import refuse_damage
from enginix.kinds.registry import get_kind, has_rank_processes
from enginix.process_group import signal_group
from enginix.tables import load_table

# A name of DNS or Kubernetes, or an IPv4 address: an agent must not take it for an option.
_HOST = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([1-9]\d{0,2})")
_FILE = re.compile(r"(\S+)\s+slots\s*=\s*(\d+)")
_AGENT_LINE = re.compile(r"enginix: host (\S+): (.*)")
_STARTED = "daemon started"
# Open MPI 4.1, help-errmgr-base.txt.
_LOST = re.compile(r"\s*Remote daemon: \[\[.*\] on node (\S+)")
# Seconds for one try of a host, and between two tries.
TRY_SECONDS = 15.0
PAUSE_SECONDS = 1.0


class HostError(MachineError):
    """Ranks cannot be started on a host."""

    kind = "host"


@dataclass(frozen=True)
class Host:
    """A machine, by the name that the agent knows, and its number of ranks, one for each GPU."""

    name: str
    slots: int


@dataclass(frozen=True)
class Agent:
    """A program that starts a command on another host.

    Attributes:
        name: ``ssh``, ``kubectl`` or a program that is called like ssh: HOST COMMAND.
        program: the executable.
    """

    name: str
    program: str

    def words(self, host: str, command: str) -> list[str]:
        """Return the command line that runs a shell ``command`` on a host."""
        if self.name == "kubectl":
            # Names of hosts are names of Pods.
            return [self.program, "exec", host, "--", "/bin/sh", "-c", command]
        if self.name == "ssh":
            return [self.program, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host, command]
        return [self.program, host, command]

    def environment(self) -> dict[str, str]:
        """Return the variables that ssh or kubectl need; ranks do not see them."""
        names = ("HOME", "PATH", "SSH_AUTH_SOCK", "KUBECONFIG", "KUBERNETES_SERVICE_HOST")
        return {k: os.environ[k] for k in (*names, "KUBERNETES_SERVICE_PORT") if k in os.environ}

    def script(self) -> str:
        """Return the text of the script that ``plm_rsh_agent`` names."""
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in sorted(self.environment().items()))
        fixed = [shlex.quote(w) for w in self.words("@host@", "@command@")]
        call = " ".join({"@host@": '"$host"', "@command@": '"$*"'}.get(w, w) for w in fixed)
        return (
            f"#!/bin/sh\n{exports}host=$1\nshift\n{call} </dev/null &\nchild=$!\n"
            "trap 'kill \"$child\"' TERM INT\n"
            'wait "$child"\nstatus=$?\n'
            # Where mpirun itself starts all daemons (plm_rsh_no_tree_spawn), they leave the agent.
            f'said="{_STARTED}"\n[ "$status" -eq 0 ] || said="{self.name} ended with status $status"\n'
            'echo "enginix: host $host: $said" >&2\nexit "$status"\n'
        )


def parse_hosts(text: str, where: str = "--hosts") -> tuple[Host, ...]:
    """Parse hosts from ``a:8,b:8``.

    Raises:
        UsageError: another form, or a host twice.
    """
    hosts = []
    for part in text.split(","):
        match = _HOST.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"{part.strip()!r} is not HOST:SLOTS", where=where, fix="for instance a:8,b:8: a rank a slot"
            )
        hosts.append(Host(match[1], int(match[2])))
    names = [host.name for host in hosts]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(f"{twice[0]} is named twice", where=where, fix="name it once, with all its slots")
    return tuple(hosts)


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read hosts from a file in Open MPI's format: lines ``a slots=8``; # begins a comment.

    Raises:
        UsageError: the file is unreadable or empty, or a line has another form.
    """
    with refuse_damage(UsageError, path, what="cannot be read"):
        lines = [line.split("#", 1)[0].strip() for line in path.read_text("utf-8").splitlines()]
    parts = []
    for line in filter(None, lines):
        if (match := _FILE.fullmatch(line)) is None:
            raise UsageError(f"{line!r} is not HOST slots=N", where=path)
        parts.append(f"{match[1]}:{match[2]}")
    if not parts:
        raise UsageError("names no host", where=path, fix="a line HOST slots=N for each")
    return parse_hosts(",".join(parts), str(path))


def check_hosts(hosts: Sequence[Host], ranks: int, kind: str, in_image: bool, engine: Path | None) -> None:
    """Check that an engine's ranks can be spread over these hosts.

    Args:
        kind: kind of the engine.
        in_image: the server would run in a sandbox of ``enginix serve``.

    Raises:
        UsageError: the ranks cannot be spread so.
    """
    if not has_rank_processes(kind):
        known_kind = get_kind(kind)
        support = known_kind.triton if known_kind is not None else None
        why = support.one_machine_reason if support is not None else "it has no ranks"
        raise UsageError(f"an engine of kind {kind} is served by one machine: {why}", where="--hosts")
    total = sum(host.slots for host in hosts)
    if total != ranks:
        raise UsageError(
            f"{total} slots for an engine of {ranks} ranks", where="--hosts", fix="a slot a rank, no more"
        )
    if len(hosts) == 1:
        return
    if in_image:
        raise UsageError(
            "--rootfs makes a sandbox on this machine alone",
            where="--hosts",
            fix="run enginix serve in containers of the runtime's image, one a machine "
            "(docs/how-to/kubernetes.md)",
        )
    first = hosts[0].name
    hostname = socket.gethostname()
    if first not in (hostname, hostname.split(".")[0]):
        raise UsageError(
            f"the first host is {first}, and this machine is {hostname}",
            where="--hosts",
            fix="rank 0 serves: name this machine first, or start it there",
        )
    each = read_gpus_per_node(engine)
    for host in hosts:
        if host.slots != each:
            raise UsageError(
                f"{host.name} has {host.slots} slots, and the engine counts {each} GPUs a machine",
                where="--hosts",
                fix=f"TensorRT-LLM takes GPU rank modulo {each}: machines of {each}, or an engine of another "
                "enginix convert --gpus-per-node",
            )


def check_single_host(ranks: int, engine: Path | None) -> None:
    """Check that the ranks of an engine of kind ``tensorrt`` can be on this machine alone.

    Raises:
        UsageError: two ranks would be on one GPU.
    """
    each = read_gpus_per_node(engine)
    if ranks > each:
        raise UsageError(
            f"an engine of {ranks} ranks for machines of {each} GPUs: rank {each} would be on rank 0's GPU",
            where=engine,
            fix=f"spread it over several with --hosts, or convert with --gpus-per-node {ranks}",
        )


def read_gpus_per_node(engine: Path | None) -> int:
    """Return the GPUs per node that an engine was converted for; TensorRT-LLM maps ranks to GPUs by them."""
    default = int(load_table("memory_constants")["defaults"]["gpusPerNode"]["value"])
    try:
        config = json.loads(
            (engine or Path("/nonexistent")).joinpath("engine", "config.json").read_text("utf-8")
        )
        each = config["pretrained_config"]["mapping"]["gpus_per_node"]
    except (OSError, ValueError, KeyError, TypeError):
        return default
    return each if type(each) is int and each > 0 else default


def find_agent(name: str) -> Agent:
    """Return the agent of ``--agent``.

    Raises:
        MachineError: the program does not exist.
    """
    named = os.environ.get("ENGINIX_KUBECTL") if name == "kubectl" else None
    program = shutil.which(named or name)
    if program is None:
        raise MachineError(
            f"no program {named or name}, which starts ranks on other machines",
            where="--agent",
            fix="install it, or name another: ssh, kubectl, or a program that takes HOST COMMAND",
        )
    return Agent(name, os.path.abspath(program))


def describe_rank(hosts: Sequence[Host], rank: int) -> str:
    """Describe a rank for an error, with its host if there are several."""
    if len(hosts) < 2:
        return f"rank {rank}"
    names = [host.name for host in hosts for _ in range(host.slots)]
    return f"rank {rank} on {names[rank]}" if rank < len(names) else f"rank {rank}"


def describe_host(hosts: Sequence[Host], name: str) -> str:
    """Describe a host for an error, with its ranks."""
    index = [host.name for host in hosts].index(name)
    first = sum(host.slots for host in hosts[:index])
    last = first + hosts[index].slots - 1
    return f"host {name}, rank {first}" + (f" to {last}" if last > first else "")


def find_failed_host(hosts: Sequence[Host], lines: Sequence[str]) -> tuple[str, str] | None:
    """Return host and reason of the failure that an agent or mpirun reports; None without such a line."""
    names = {host.name for host in hosts}
    for line in lines:
        if (
            (agent_line := _AGENT_LINE.fullmatch(line))
            and agent_line[1] in names
            and agent_line[2] != _STARTED
        ):
            return describe_host(hosts, agent_line[1]), agent_line[2]
    for line in lines:
        if (lost := _LOST.match(line)) and lost[1] in names:
            return describe_host(hosts, lost[1]), "mpirun lost its connection to it"
    return None


def find_stuck_host(hosts: Sequence[Host], lines: Iterable[str]) -> Host | None:
    """Return the first host on which mpirun's daemon has not been started yet."""
    begun = {agent_line[1] for line in lines if (agent_line := _AGENT_LINE.fullmatch(line))}
    return next((host for host in hosts[1:] if host.name not in begun), None)


def await_hosts(hosts: Sequence[Host], agent: Agent, needed: Sequence[str], seconds: float) -> None:
    """Wait until every other host can be reached and has the files that its ranks need.

    Args:
        needed: paths that must exist there: orted, tritonserver, the repository.

    Raises:
        HostError: names the host, its ranks, and the agent's last output.
    """
    command = "; ".join(
        [
            "echo enginix reached",
            *(f"test -e {shlex.quote(p)} || echo {shlex.quote(f'lacks {p}')}" for p in needed),
        ]
    )
    deadline = time.monotonic() + seconds
    for host in hosts[1:]:
        while True:
            agent_output = _try_host(
                agent, host.name, command, min(TRY_SECONDS, max(0.1, deadline - time.monotonic()))
            )
            lines = agent_output.splitlines()
            if "enginix reached" in lines:
                break
            if time.monotonic() + PAUSE_SECONDS > deadline:
                raise HostError(
                    f"not reached in {seconds:.0f} s by {agent.name}; it said: {(lines or ['nothing'])[-1]}",
                    where=describe_host(hosts, host.name),
                    fix=f"try: {shlex.join(agent.words(host.name, 'true'))}",
                )
            time.sleep(PAUSE_SECONDS)
        if lacking := [line.removeprefix("lacks ") for line in lines if line.startswith("lacks ")]:
            raise HostError(
                f"has no {lacking[0]}",
                where=describe_host(hosts, host.name),
                fix="every machine needs the same image, repository and engine under the same paths",
            )


def _try_host(agent: Agent, host: str, command: str, seconds: float) -> str:
    """Return the agent's output; for a try that hangs, a text that says so."""
    with subprocess.Popen(
        agent.words(host, command),
        env=agent.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
        except BaseException as e:
            # The whole group: an agent may be a script.
            signal_group(process.pid)
            if isinstance(e, subprocess.TimeoutExpired):
                return f"nothing for {seconds:.0f} s"
            raise
    return out.decode("utf-8", "replace")
