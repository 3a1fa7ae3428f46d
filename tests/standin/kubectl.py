"""Stand-in for kubectl exec: kubectl exec POD -- /bin/sh -c COMMAND.

KUBECONFIG names a JSON file: Pod → how it behaves. What runs in a Pod is no child of this process, as in a
cluster. A Pod "runs"; "hangs" or "forbids"; "drops" every command but the first, or "sticks" at it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

DETACH = """
import os, subprocess, sys
if os.fork():
    os._exit(0)
os.setsid()
status = subprocess.call(sys.argv[2:], stdin=subprocess.DEVNULL)
with open(sys.argv[1], "w") as f:
    f.write(str(status))
"""


def main(words):
    if words[:1] != ["exec"] or words[2:5] != ["--", "/bin/sh", "-c"] or len(words) != 6:
        print(f"error: unknown command {words}", file=sys.stderr)
        return 1
    pod, config = words[1], Path(os.environ["KUBECONFIG"])
    behaviour = json.loads(config.read_text()).get(pod)
    if behaviour is None:
        print(f'Error from server (NotFound): pods "{pod}" not found', file=sys.stderr)
        return 1
    if behaviour == "forbids":
        who = 'User "system:serviceaccount:default:other" cannot create resource "pods/exec"'
        print(f'Error from server (Forbidden): pods "{pod}" is forbidden: {who}', file=sys.stderr)
        return 1
    asked = config.with_name(f"asked-{pod}")
    first = not asked.exists()
    asked.touch()
    if behaviour == "hangs" or (behaviour == "sticks" and not first):
        time.sleep(3600)
    if behaviour == "drops" and not first:
        print("error: Internal error occurred: error sending request: unexpected EOF", file=sys.stderr)
        return 1
    result = config.with_name(f"status-{pod}-{os.getpid()}")
    inside = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "POD": pod}
    # The Pod has the pipe of this process's output, and no other tie to it.
    subprocess.run([sys.executable, "-c", DETACH, str(result), *words[3:]], env=inside, check=True)
    while not result.exists() or not result.read_text():
        time.sleep(0.02)
    return int(result.read_text())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
