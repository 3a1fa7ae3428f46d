"""Several ranks: one tritonserver for each GPU under mpirun, as NVIDIA's launcher starts them.

Rank 0 serves. The others load ``tensorrt_llm`` alone, by explicit model control, and have no endpoint: they
never return from loading it, so a port would never be bound (launch_triton_server.py of TensorRT-LLM's
triton_backend/scripts leaves them their ports for that reason). Each has shared memory of its own name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from enginix.process_group import list_descendants
from enginix.serve.hosts import Host
from enginix.triton.contract import EXECUTOR

# mpirun --tag-output: [1,0]<stdout>:text (OpenMPI 4), [prterun-host-1@1,0]<stdout>: text (OpenMPI 5).
_TAGGED = re.compile(r"\[[^\]\s]*?,(\d+)\]<std(?:out|err|diag)>: ?(.*)", re.DOTALL)
_ENDED = (
    re.compile(r"mpirun noticed that process rank (\d+) "),
    re.compile(r"Process name: \[.*,(\d+)\]\s*$"),
)
_SHM = "--backend-config=python,shm-region-prefix-name="


def shm_option(prefix: str, rank: int) -> str:
    """Return the option that names a rank's shared memory, which also identifies the rank's process."""
    return f"{_SHM}{prefix}r{rank}-"


# The options that a rank above 0 has instead of endpoints.
FURTHER_RANK_OPTIONS = (
    "--model-control-mode=explicit",
    f"--load-model={EXECUTOR}",
    *(f"--allow-{endpoint}=false" for endpoint in ("http", "grpc", "metrics")),
)


def build_mpirun_command(
    program: str,
    commands: Sequence[Sequence[str]],
    hosts: Sequence[Host] = (),
    agent: str = "",
    exported: Sequence[str] = (),
) -> list[str]:
    """Return mpirun's command line, which starts one command for each rank.

    Args:
        hosts: the machines, if there are several; each rank is placed by name, not by mpirun's mapping.
        agent: the program that starts mpirun's daemon on another machine.
        exported: names of variables that ranks of other machines get from this one.
    """
    words = [program, "--tag-output"]
    if os.getuid() == 0:
        # Without it OpenMPI refuses root, which a process in an image's user namespace always is.
        words.append("--allow-run-as-root")
    several = len(hosts) > 1
    if several:
        # Start every host from here: by default hosts start other hosts, and would need the agent's rights.
        words += ["--mca", "plm_rsh_agent", agent, "--mca", "plm_rsh_no_tree_spawn", "1"]
        if any("." in host.name for host in hosts):
            words += ["--mca", "orte_keep_fqdn_hostnames", "1"]
    places = [host for host in hosts for _ in range(host.slots)]
    for rank, command in enumerate(commands):
        words += [":"] if rank else []
        if several:
            words += ["--host", f"{places[rank].name}:{places[rank].slots}"]
            if places[rank] is not hosts[0]:
                words += [word for name in exported for word in ("-x", name)]
        words += ["-n", "1", *command]
    return words


def split_tagged_line(line: str) -> tuple[int | None, str]:
    """Return rank and text of a line of mpirun's output; the rank is None for mpirun's own lines."""
    match = _TAGGED.fullmatch(line)
    return (int(match[1]), match[2]) if match else (None, line)


def find_ended_rank(lines: Sequence[str]) -> int | None:
    """Return the rank that ended the job, according to mpirun."""
    for line in lines:
        for pattern in _ENDED:
            if match := pattern.search(line):
                return int(match[1])
    return None


def find_running_ranks(root: int, prefix: str) -> dict[int, int]:
    """Return rank → pid of the servers among a process and its descendants."""
    processes: dict[int, int] = {}
    option = re.compile(re.escape(_SHM + prefix) + r"r(\d+)-")
    for pid in (root, *list_descendants(root)):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")
            if Path(words[0]).name in ("bwrap", "mpirun"):
                continue
            ranks = [int(m[1]) for word in words if (m := option.fullmatch(word))]
            # mpirun's own command line names all ranks, whatever program runs it.
            if len(ranks) == 1:
                processes.setdefault(ranks[0], pid)
    return processes
