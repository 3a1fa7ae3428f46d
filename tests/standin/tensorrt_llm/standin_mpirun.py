"""Stand-in for mpirun: starts the ranks one after another."""

import argparse
import subprocess
import sys

parser = argparse.ArgumentParser(prog="mpirun")
parser.add_argument("-n", "-np", type=int, default=1, dest="ranks")
parser.add_argument("--oversubscribe", action="store_true")
parser.add_argument("--allow-run-as-root", action="store_true")
parser.add_argument("command", nargs=argparse.REMAINDER)
args = parser.parse_args()
sys.exit(max(subprocess.run(args.command, check=False).returncode for _ in range(args.ranks)))
