"""Several ranks: tritonserver once a GPU under mpirun, as NVIDIA's launcher starts them.

Rank 0 serves. The others load ``tensorrt_llm`` alone, by explicit model control, and have no endpoint: they
never return from loading it, so a port would never be bound (launch_triton_server.py of TensorRT-LLM's
triton_backend/scripts leaves them their ports for that reason). Each has shared memory of its own name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
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
    """The option that names a rank's shared memory; it tells ranks apart among processes, too."""
    return f"{_SHM}{prefix}r{rank}-"


def further_rank_options(rank: int) -> list[str]:
    """What a rank above 0 has in place of endpoints."""
    return [
        "--model-control-mode=explicit",
        f"--load-model={EXECUTOR}",
        "--allow-http=false",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]


def build_mpirun_command(
    program: str,
    commands: Sequence[Sequence[str]],
    hosts: Sequence[Host] = (),
    agent: str = "",
    exported: Sequence[str] = (),
) -> list[str]:
    """The command line that starts one command a rank.

    Args:
        hosts: the machines, where there are several; each rank is placed by name, whatever mpirun's mapping.
        agent: the program that starts mpirun's daemon on another machine.
        exported: names of variables that ranks of other machines get from here.
    """
    words = [program, "--tag-output"]
    if os.getuid() == 0:
        # OpenMPI refuses root otherwise; inside an image's name space it is nobody else.
        words.append("--allow-run-as-root")
    several = len(hosts) > 1
    if several:
        # From here to every host: by default hosts start others, which would need the agent's rights, too.
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
    """Rank and text of a line of mpirun's output; no rank where mpirun itself speaks."""
    match = _TAGGED.fullmatch(line)
    return (int(match[1]), match[2]) if match else (None, line)


def find_ended_rank(lines: Sequence[str]) -> int | None:
    """The rank that mpirun says ended the job."""
    for line in lines:
        for pattern in _ENDED:
            if match := pattern.search(line):
                return int(match[1])
    return None


def find_running_ranks(root: int, prefix: str) -> dict[int, int]:
    """Rank → process, of the servers among a process and those below it."""
    processes: dict[int, int] = {}
    option = re.compile(re.escape(_SHM + prefix) + r"r(\d+)-")
    for pid in (root, *list_descendants(root)):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")
            if Path(words[0]).name in ("bwrap", "mpirun"):
                continue
            ranks = [int(m[1]) for word in words if (m := option.fullmatch(word))]
            # mpirun's own command line, by whatever program runs it, names all of them.
            if len(ranks) == 1:
                processes.setdefault(ranks[0], pid)
    return processes


def find_silent_rank(heard: Mapping[int, float], count: int) -> int:
    """The rank that has said nothing for the longest; one that never spoke before all others."""
    return min(range(count), key=lambda rank: heard.get(rank, 0.0))
