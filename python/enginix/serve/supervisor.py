"""One tritonserver process: started in its own group, watched, and stopped with all its descendants."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from enginix.errors import EnginixError, MachineError
from enginix.process_group import (
    end_with_parent,
    is_group_alive,
    kill_processes,
    list_descendants,
    signal_group,
)
from enginix.runtime.child import Child
from enginix.serve import hosts, ranks
from enginix.serve.hang_watch import HUNG_LOOKS, HangWatch
from enginix.serve.launch import AGENT, LaunchSpec, link_named_paths, link_repository, unbatch_reference
from enginix.serve.preflight import SHM
from enginix.serve.state_directory import StateDirectory
from enginix.serve.tritonserver import STUB
from enginix.triton.contract import ENSEMBLE, EXECUTOR_KEY, HEARTBEATS

LAST_LINES = 400
WATCH_SECONDS = 1.0
_FAILED = re.compile(r"failed to load '([^']+)' version \d+: ([^\n]*)")
# Tables, empty lines, information, and the start message of every machine without a GPU.
_NOISE = re.compile(r"^(?:rank \d+: )?(?:[+|]|\s*$|I\d{4} |(?:Error: )?Failed to initialize NVML)")
# A line of the stack that Triton prints when it crashes: address or function, and the file that holds it.
_FRAME = re.compile(r"^(?:rank \d+: )?\s*\d+# (?:0x[0-9A-Fa-f]+|(?P<function>\S.*?)) in (?P<file>\S+)$")
_CRASH = re.compile(r"^(?:rank \d+: )?Signal \(\d+\) received\.$")


class StartError(MachineError):
    """The server did not become ready."""

    kind = "start"


class SupervisedServer:
    """A running tritonserver; a context manager that always ends it.

    Args:
        spec: command and environment to start.
        show: receives every line that the server prints.
    """

    def __init__(self, spec: LaunchSpec, show: Callable[[str], None]) -> None:
        self.plan = spec
        self._show = show
        self._lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._heard: dict[int, float] = {}
        self._said: dict[int, str] = {}
        self._prefix = f"enginix-{secrets.token_hex(6)}-"
        self._directory = StateDirectory()
        self._state = self._directory.path
        self.executor_key = secrets.token_urlsafe(24)
        self._child: Child | None = None
        try:
            self.process = self._started()
        except (OSError, EnginixError) as e:
            self._directory.remove()
            if isinstance(e, EnginixError):
                raise
            raise StartError(f"cannot start: {e.strerror}", where=spec.server.program) from e
        self._ranks: dict[int, int] = {}
        # No process is left that could answer the running requests.
        self._cannot_answer = False
        self._reader = threading.Thread(target=self._read, name="enginix-log", daemon=True)
        self._reader.start()

    def _started(self) -> subprocess.Popen[bytes]:
        spec = self.plan
        models = link_repository(spec.repository, self._state / "models")
        unbatch_reference(models)
        if len(spec.hosts) < 2:
            link_named_paths(models, self._state / "links")
        # Opens the executor of kind reference, which only the ensemble may use otherwise.
        key = os.open(self._state / EXECUTOR_KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(key, "w", encoding="ascii") as f:
            f.write(self.executor_key)
        (self._state / HEARTBEATS).mkdir(0o700)
        if spec.agent is not None:
            (self._state / AGENT).write_text(spec.agent.script(), "utf-8")
            (self._state / AGENT).chmod(0o700)
        sandbox = spec.make_sandbox(self._state)
        if sandbox is not None:
            sandbox.prepare()
            self._child = Child(sandbox, spec.command(self._prefix, sandbox.inside / "models"), capture=True)
            return self._child.process
        return subprocess.Popen(
            spec.command(self._prefix, models),
            env=spec.environment(self._state),
            cwd=self._state,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Before any thread exists here; if the supervisor is killed, the kernel ends the server.
            preexec_fn=end_with_parent(signal.SIGTERM),
        )

    def __enter__(self) -> SupervisedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def check_running(self) -> None:
        """Raise an error if the server has ended.

        Raises:
            StartError: the server has ended; names the model that failed, and the last lines.
        """
        if (status := self.process.poll()) is not None:
            self._reader.join(5)
            raise explain_exit(list(self._lines), status, self.plan.hosts)
        self._close_shared_memory()
        self._check_ranks()

    def _close_shared_memory(self) -> None:
        """Take away other users' right to read the server's shared memory.

        Triton's Python backend makes it by Boost.Interprocess, which sets mode 0644 whatever the umask is.
        """
        for region in SHM.glob(f"{self._prefix}*"):
            with contextlib.suppress(OSError):
                region.chmod(0o600)

    def _check_ranks(self) -> None:
        if self.plan.ranks == 1:
            return
        now = ranks.find_running_ranks(self.process.pid, self._prefix)
        # mpirun ends the other ranks, and then itself, with a better message; wait for it.
        if (gone := sorted(set(self._ranks) - set(now))) and self._still_running(5):
            raise self._silent(gone[0], f"its process (of id {self._ranks[gone[0]]}) ended")
        self._ranks |= now

    def _still_running(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        self._reader.join(5)
        raise explain_exit(list(self._lines), self.process.returncode, self.plan.hosts)

    def not_ready(self, seconds: float) -> StartError:
        """Return the error for a start that takes too long; with several ranks it names the silent one."""
        what = f"not ready after {seconds:.0f} s"
        spec = self.plan
        # mpirun starts no rank before all its daemons run.
        if (
            spec.agent is not None
            and not self._heard
            and (host := hosts.find_stuck_host(spec.hosts, self._lines))
        ):
            return StartError(
                f"{what}; {spec.agent.name} has not started mpirun's daemon there",
                where=hosts.describe_host(spec.hosts, host.name),
                fix=f"its last lines:\n    {chr(10).join(self.last_lines()) or 'nothing'}",
            )
        if self.plan.ranks > 1:
            # A rank that never printed a line comes first.
            rank = min(range(self.plan.ranks), key=lambda rank: self._heard.get(rank, 0.0))
            since = time.monotonic() - self._heard[rank] if rank in self._heard else seconds
            return self._silent(rank, f"{what}; silent for {since:.0f} s")
        lines = "\n    ".join(self.last_lines())
        fix = f"raise --start-timeout where it is still loading; its last lines:\n    {lines}"
        return StartError(what, where="tritonserver", fix=fix)

    def _silent(self, rank: int, what: str) -> StartError:
        others = "".join(
            f"\n    {hosts.describe_rank(self.plan.hosts, n)}: {self._said.get(n, 'nothing')}"
            for n in range(self.plan.ranks)
            if n != rank
        )
        return StartError(
            f"{what}; its last line: {self._said.get(rank, 'none, it never said anything')}",
            where=hosts.describe_rank(self.plan.hosts, rank),
            fix=f"look at that rank's GPU and at links between GPUs; the others' last lines:{others}",
        )

    def wait(self, is_live: Callable[[], bool] = lambda: True) -> int:
        """Wait for the server's end; returns its exit status, negative for a signal.

        Args:
            is_live: asks the server whether it lives; takes seconds at most.

        Raises:
            StartError: a Python model's process ended. Triton 2.51 does not start it again and stays ready,
                while every request to it fails; only a restart helps. Or a process hangs.
        """
        models = self._models()
        watch = HangWatch(self._state / HEARTBEATS, is_live)
        while True:
            try:
                status = self.process.wait(WATCH_SECONDS)
            except subprocess.TimeoutExpired:
                self._close_shared_memory()
                self._check_ranks()
                running = self._models()
                # The server itself may be ending: then its status is the better reason.
                if (gone := sorted(set(models) - set(running))) and self.process.poll() is None:
                    # The ensemble is a Python model in kind reference alone.
                    self._cannot_answer = ENSEMBLE in models.values() and ENSEMBLE not in running.values()
                    raise StartError(
                        f"its process (of id {gone[0]}) ended",
                        where=models[gone[0]],
                        fix="start the server again",
                    ) from None
                if (hung := watch.find_hung()) and self.process.poll() is None:
                    # What waits for it waits in vain.
                    self._cannot_answer = True
                    raise StartError(
                        f"it hangs: no sign of life for {HUNG_LOOKS * WATCH_SECONDS:.0f} s",
                        where=hung,
                        fix="start the server again",
                    ) from None
                continue
            self._reader.join(5)
            return status

    def _models(self) -> dict[int, str]:
        """Return the processes of Python models, with the models' names."""
        models = {}
        for pid in list_descendants(self.process.pid):
            with contextlib.suppress(OSError, IndexError):
                # A process that has ended but is not reaped has no command line.
                words = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")
                if words[0].endswith(STUB):
                    models[pid] = Path(words[1]).parents[1].name
        return models

    def forget_start(self) -> None:
        """Forget the server's lines so far: a line of the start does not explain a later end."""
        self._lines.clear()

    def last_lines(self, count: int = 12) -> list[str]:
        return list(self._lines)[-count:]

    def stop(self) -> int:
        """Send SIGTERM, wait for running requests, send SIGKILL to the whole group, and remove leftovers.

        Returns:
            The exit status; 0 when every accepted request was answered.
        """
        try:
            if self.process.poll() is None and not self._cannot_answer:
                self._terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(self.plan.exit_timeout + 10)
            return self._reap()
        finally:
            self._clean()

    def _terminate(self) -> None:
        """Send SIGTERM to the server alone: its Python processes must live until their requests are answered.

        With several ranks, send it to rank 0, which serves: mpirun would give all ranks a second and then
        kill them; the others end when rank 0 does. bubblewrap would kill the server.
        """
        servers = ranks.find_running_ranks(self.process.pid, self._prefix)
        if 0 in servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(servers[0], signal.SIGTERM)
        elif self._child is None and self.plan.ranks == 1:
            self.process.send_signal(signal.SIGTERM)
        else:
            # Not started yet: nothing to end gracefully.
            self.kill()

    def kill(self) -> None:
        """Kill the whole group at once."""
        if self._child is not None:
            self._child.kill()
            return
        # mpirun's agents for other machines have groups of their own.
        below = list_descendants(self.process.pid) if self.plan.agent is not None else {}
        signal_group(self.process.pid)
        kill_processes(below)

    def _reap(self) -> int:
        if self.process.poll() is None:
            self.kill()
        status = self.process.wait()
        # Python stubs notice the server's end within moments; those that do not are killed with the group.
        for _ in range(20):
            if not is_group_alive(self.process.pid):
                break
            time.sleep(0.1)
        else:
            self.kill()
        self._reader.join(5)
        return status

    def _clean(self) -> None:
        if self._child is not None:
            self._child.__exit__()
        for left in SHM.glob(f"{self._prefix}*"):
            left.unlink(missing_ok=True)
        self._directory.remove()

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                if self.plan.ranks > 1:
                    rank, text = ranks.split_tagged_line(line)
                    if rank is not None:
                        self._heard[rank], self._said[rank] = time.monotonic(), text
                        line = f"rank {rank}: {text}"
                self._lines.append(line)
                with contextlib.suppress(OSError, ValueError):
                    self._show(line)


def explain_exit(lines: list[str], status: int, machines: Sequence[hosts.Host] = ()) -> StartError:
    """Return the error for a dead server, by its output: names the model and the reason, or the machine."""
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    useful = [line for line in lines if not _NOISE.search(line)]
    tail = "\n    ".join(useful[-12:]) or "no output"
    rank = ranks.find_ended_rank(lines)
    where = "tritonserver" if rank is None else hosts.describe_rank(machines, rank)
    if (lost := hosts.find_failed_host(machines, lines)) is not None and rank is None:
        return StartError(lost[1], where=lost[0], fix=f"its and mpirun's last lines:\n    {tail}")
    for line in useful:
        if failure := _FAILED.search(line):
            # Triton writes the message with its traceback on one line, line ends as \\n.
            reason = failure[2].split("\\n", 1)[0].rstrip('"').removeprefix("Internal: ").strip()
            return StartError(
                f"failed to load: {reason}",
                where=failure[1] if rank is None else f"{where}, {failure[1]}",
                fix=f"correct the model; tritonserver ended with {how}, its last lines:\n    {tail}",
            )
    if status < 0 and rank is None and useful:
        return StartError(
            f"ended with {how}: {_describe_crash(useful) or _SIGNALS.get(-status, useful[-1])}",
            where="tritonserver",
            fix="start it again; if a request did it, keep clients that you do not trust behind a gateway. "
            f"Its last lines:\n    {tail}",
        )
    errors = [line for line in useful if re.match(r"(?:rank \d+: )?error", line, re.IGNORECASE)]
    rank_lines = [line for line in useful if line.startswith(f"rank {rank}: ")]
    if rank_lines:
        return StartError(
            f"ended; its last line: {rank_lines[-1].split(': ', 1)[1]}",
            where=where,
            fix=f"mpirun ended with {how}, its last lines:\n    {tail}",
        )
    last = errors[-1] if errors else (useful[-1] if useful else "no output")
    return StartError(f"ended with {how}: {last}", where=where, fix=f"its last lines:\n    {tail}")


_SIGNALS = {9: "killed from outside, or by the kernel for want of memory", 15: "ended from outside"}


def _describe_crash(lines: list[str]) -> str | None:
    """Describe a crash of Triton by its stack: the first library that does not belong to the C library."""
    crash_line = next((n for n, line in enumerate(lines) if _CRASH.search(line)), None)
    if crash_line is None:
        return None
    frames = [frame for line in lines[crash_line + 1 :] if (frame := _FRAME.search(line))]
    for n, frame in enumerate(frames):
        file = Path(frame["file"]).name
        if file != "tritonserver" and not file.startswith(("libc.", "libstdc++.", "libpthread.")):
            same = [f["function"] for f in frames[n:] if Path(f["file"]).name == file and f["function"]]
            return f"it crashed in {file}{f' ({same[0]})' if same else ''}"
    return "it crashed"
