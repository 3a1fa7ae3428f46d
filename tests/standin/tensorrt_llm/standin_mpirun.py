"""Stand-in for mpirun: one command, its ranks one after another; several commands, all at once.

Several are joined by ``:`` as OpenMPI has it, a rank each. A rank that fails ends the job; where
STANDIN_DEAF is set, mpirun notices nothing. Of the ranks of another host, orted is started through the agent
(plm_rsh_agent) and talks to mpirun by TCP, as Open MPI's does.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

parser = argparse.ArgumentParser(prog="mpirun")
parser.add_argument("-n", "-np", type=int, default=1, dest="ranks")
parser.add_argument("--oversubscribe", action="store_true")
parser.add_argument("--allow-run-as-root", action="store_true")
parser.add_argument("--tag-output", action="store_true")
parser.add_argument("--mca", nargs=2, action="append", default=[])
parser.add_argument("--host")
parser.add_argument("-x", action="append", default=[])
parser.add_argument("command", nargs=argparse.REMAINDER)


def contexts(words):
    """The words of each command."""
    found = [[]]
    for word in words:
        if word == ":":
            found.append([])
        else:
            found[-1].append(word)
    return found


def tagged(rank, stream, tag):
    for raw in stream:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        print(f"[1,{rank}]<stdout>:{line}" if tag else line, flush=True)


class Remote:
    """A rank on another host."""

    def __init__(self):
        self.returncode = None

    def poll(self):
        return self.returncode

    def terminate(self):
        self.returncode = -15 if self.returncode is None else self.returncode

    kill = wait = terminate


def started(host, ranks, commands, agent, tag):
    """Starts a host's daemon by the agent, and its ranks by the daemon; rank → process."""
    found = {rank: Remote() for rank in ranks}
    listener = socket.create_server(("127.0.0.1", 0))
    words = [sys.executable, "-m", "tensorrt_llm.standin_orted", host, str(listener.getsockname()[1])]
    site = Path(__file__).parents[1]
    # As Open MPI: the host, then one line for its shell; in a process group of its own.
    line = f"PYTHONPATH={site} ; export PYTHONPATH ; {shlex.join(words)}"
    starter = subprocess.Popen([agent, host, line], start_new_session=True, stdin=subprocess.DEVNULL)
    listener.settimeout(0.05)
    while True:
        try:
            connection, _ = listener.accept()
            break
        except TimeoutError:
            if starter.poll() not in (None, 0):
                print("ORTE was unable to reliably start one or more daemons.", flush=True)
                os._exit(1)
    connection.settimeout(None)
    stream = connection.makefile("r")
    assert json.loads(stream.readline())["host"] == host
    with connection.makefile("w") as out:
        print(json.dumps(commands), file=out)

    def follow():
        for raw in stream:
            message = json.loads(raw)
            if "line" in message:
                print(
                    f"[1,{message['rank']}]<stdout>:{message['line']}" if tag else message["line"], flush=True
                )
            else:
                found[message["rank"]].returncode = message["ended"]
        if any(process.returncode is None for process in found.values()):
            print("ORTE has lost communication with a remote daemon.\n", flush=True)
            print(f"  HNP daemon   : [[1,0],0] on node {socket.gethostname()}", flush=True)
            print(f"  Remote daemon: [[1,0],1] on node {host}", flush=True)
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    found["connection"] = connection
    return found


def placed(apps):
    """Host → its ranks; each context names one, or none does."""
    named = [app.host for app in apps]
    if all(name is None for name in named):
        return {None: list(range(len(apps)))}
    found = {}
    for rank, name in enumerate(named):
        host, slots = name.rsplit(":", 1)
        found.setdefault(host, []).append(rank)
        assert len(found[host]) <= int(slots), "There are not enough slots available in the system"
    return found


def job(first, others):
    tag, parameters = first.tag_output, dict(first.mca)
    apps = [first, *(parser.parse_args(words) for words in others)]
    commands = [app.command for app in apps]
    with tempfile.TemporaryDirectory() as state:
        running = [None] * len(commands)
        connections = []
        # No rank starts before all daemons have.
        places = sorted(placed(apps).items(), key=lambda place: place[0] in (None, socket.gethostname()))
        for host, ranks in places:
            own = {
                rank: {
                    "OMPI_COMM_WORLD_RANK": str(rank),
                    "OMPI_COMM_WORLD_SIZE": str(len(commands)),
                    "STANDIN_JOB": state,
                }
                for rank in ranks
            }
            if host in (None, socket.gethostname()):
                for rank in ranks:
                    env = os.environ | own[rank]
                    running[rank] = subprocess.Popen(
                        commands[rank], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                    )
                    reading = (rank, running[rank].stdout, tag)
                    threading.Thread(target=tagged, args=reading, daemon=True).start()
                continue
            assert parameters["plm_rsh_no_tree_spawn"] == "1", "this stand-in has no tree"
            told = {}
            for rank in ranks:
                exported = {name: os.environ[name] for name in apps[rank].x if name in os.environ}
                told[rank] = {"words": commands[rank], "environment": exported | own[rank]}
            remote = started(host, ranks, told, parameters["plm_rsh_agent"], tag)
            connections.append(remote.pop("connection"))
            for rank, process in remote.items():
                running[rank] = process

        def end(*_):
            # As OpenMPI: SIGTERM to all, and a second later the end.
            for process in running:
                process.terminate()
            time.sleep(1)
            for process in running:
                process.kill()
            os._exit(143)

        signal.signal(signal.SIGTERM, end)
        while any(p.poll() is None for p in running):
            failed = [r for r, p in enumerate(running) if p.poll() not in (None, 0)]
            if failed and "STANDIN_DEAF" not in os.environ:
                break
            time.sleep(0.02)
        failed = [r for r, p in enumerate(running) if p.poll() not in (None, 0)]
        if not failed:
            time.sleep(0.1)
            return 0
        rank, status = failed[0], running[failed[0]].returncode
        for process in running:
            process.kill()
        for process in running:
            process.wait()
        time.sleep(0.1)
        if status < 0:
            who = f"process rank {rank} with PID 0 on node standin"
            print(f"mpirun noticed that {who} exited on signal {-status}.", flush=True)
            return 128 - status
        print("mpirun detected that one or more processes exited with non-zero status", flush=True)
        print(f"  Process name: [[4242,1],{rank}]\n  Exit code:    {status}", flush=True)
        return status


first, *others = contexts(sys.argv[1:])
args = parser.parse_args(first)
if others:
    sys.exit(job(args, others))
sys.exit(max(subprocess.run(args.command, check=False).returncode for _ in range(args.ranks)))
