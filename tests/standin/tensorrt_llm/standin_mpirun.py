"""Stand-in for mpirun: one command, its ranks one after another; several commands, all at once.

Several are joined by ``:`` as OpenMPI has it, a rank each. A rank that fails ends the job; where
STANDIN_DEAF is set, mpirun notices nothing.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

parser = argparse.ArgumentParser(prog="mpirun")
parser.add_argument("-n", "-np", type=int, default=1, dest="ranks")
parser.add_argument("--oversubscribe", action="store_true")
parser.add_argument("--allow-run-as-root", action="store_true")
parser.add_argument("--tag-output", action="store_true")
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


def job(first, others):
    tag = first.tag_output
    commands = [first.command, *(parser.parse_args(words).command for words in others)]
    with tempfile.TemporaryDirectory() as state:
        running = []
        for rank, command in enumerate(commands):
            env = os.environ | {
                "OMPI_COMM_WORLD_RANK": str(rank),
                "OMPI_COMM_WORLD_SIZE": str(len(commands)),
                "STANDIN_JOB": state,
            }
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            threading.Thread(target=tagged, args=(rank, process.stdout, tag), daemon=True).start()
            running.append(process)

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
