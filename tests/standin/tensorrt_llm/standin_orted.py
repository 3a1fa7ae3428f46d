"""Stand-in for orted: standin_orted HOST PORT; starts what mpirun says, tells it what its ranks say."""

import json
import os
import socket
import subprocess
import sys
import threading


def main(host, port):
    connection = socket.create_connection(("127.0.0.1", int(port)))
    stream, sending = connection.makefile("r"), threading.Lock()

    def tell(**message):
        with sending, connection.makefile("w") as out:
            print(json.dumps(message), file=out)

    tell(host=host)
    # As Open MPI's where mpirun starts all daemons itself (plm_rsh_no_tree_spawn): the agent's command ends.
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    running = []

    def follow(rank, process):
        for raw in process.stdout:
            tell(rank=rank, line=raw.decode("utf-8", "replace").rstrip("\n"))
        tell(rank=rank, ended=process.wait())

    for rank, command in json.loads(stream.readline() or "{}").items():
        env = os.environ | command["environment"]
        process = subprocess.Popen(
            command["words"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        running.append(process)
        threading.Thread(target=follow, args=(int(rank), process), daemon=True).start()
    # mpirun closes its end when the job is over, and the kernel does when it died.
    stream.read()
    for process in running:
        process.kill()
    for process in running:
        process.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
