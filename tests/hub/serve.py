#!/usr/bin/env python3
"""Serves directories as Hub repositories, until it is told to stop (SIGTERM or Ctrl-C).

  python tests/hub/serve.py --repo acme/tiny=tests/models/tiny-qwen3
  HF_ENDPOINT=http://127.0.0.1:PORT hf download acme/tiny

One line with the address is printed when it listens. Another branch: --repo acme/tiny=DIR@BRANCH.
A dataset: --repo datasets/acme/texts=DIR.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hub import Fault, Hub, Repository
from hub import faults as fault_notes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=fault_notes.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repo", action="append", required=True, metavar="OWNER/NAME=DIR[@BRANCH]")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (%(default)s)")
    parser.add_argument("--port-file", type=Path, help="write the port here once it listens")
    parser.add_argument("--token", action="append", default=[], help="a token that the hub knows; repeatable")
    parser.add_argument("--gated", action="append", default=[], metavar="OWNER/NAME=auto|manual")
    parser.add_argument("--private", action="append", default=[], metavar="OWNER/NAME")
    parser.add_argument("--page-size", type=int, default=1000, help="files a page of a listing (%(default)s)")
    parser.add_argument("--fault", action="append", default=[], metavar="KIND[,OPTION=VALUE…]")
    parser.add_argument("--xet", action="store_true", help="offer large files by Xet too")
    parser.add_argument("--log", type=Path, help="append one JSON object a request")
    args = parser.parse_args()

    branches: dict[str, dict[str, str | Path]] = {}
    for word in args.repo:
        name, _, where = word.partition("=")
        directory, at, branch = where.rpartition("@")
        if not at or os.path.isdir(where):
            directory, branch = where, "main"
        if name.removeprefix("datasets/").count("/") != 1 or not os.path.isdir(directory):
            parser.error(f"--repo {word}: expected OWNER/NAME=DIRECTORY[@BRANCH] with an existing directory")
        branches.setdefault(name, {})[branch] = directory
    gated = dict(word.partition("=")[::2] for word in args.gated)
    for name in [*gated, *args.private]:
        if name not in branches:
            parser.error(f"{name} is not among --repo")
    try:
        faults = [Fault.parse(word) for word in args.fault]
    except ValueError as e:
        parser.error(str(e))
    hub = Hub(
        {
            name: Repository(dirs, gated=gated.get(name) or False, private=name in args.private)
            for name, dirs in branches.items()
        },
        host=args.host,
        port=args.port,
        tokens=args.token,
        page_size=args.page_size,
        faults=faults,
        log=args.log,
        xet=args.xet,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with hub:
        print(hub.endpoint, flush=True)
        if args.port_file:
            beside = args.port_file.with_name(args.port_file.name + ".partial")
            beside.write_text(f"{hub.port}\n")
            beside.rename(args.port_file)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
