"""Puts a tritonserver into a directory: the CPU build with the Python backend of nvidia-pytriton.

  enginix tritonserver -o ./tritonserver                     fetched by this Python's pip, by its hash
  enginix tritonserver -o ./tritonserver --wheel FILE        from a wheel that is here already

The wheel's sha256 is checked. The server serves engines of kind reference, on x86_64 Linux with glibc 2.35 or
later (Debian 12, Ubuntu 22.04), for the version of Python that runs this command. enginix serve finds it from
then on, for the same user and version of Python; --tritonserver and $ENGINIX_TRITONSERVER name another.
Engines of kinds tensorrt and llmapi are served by the tritonserver of their runtime's image
(docs/reference/triton.md).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_output, add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "DIR", "directory to write", required=True)
    add_path(parser, "--wheel", "FILE", "wheel file, if pip cannot fetch it")


def run(args: argparse.Namespace) -> int:
    from enginix.output_path import require_absent
    from enginix.serve import pytriton_wheel as wheels

    require_absent(args.output)
    wheels.check_machine()
    row = wheels.wheel_row()
    with tempfile.TemporaryDirectory(prefix="enginix-wheel-") as work:
        wheel = args.wheel
        if wheel is None:
            console.print_message(f"fetching {row['project']} {row['version']} (53 MiB)")
            wheel = wheels.download_wheel(Path(work))
        wheels.install_wheel(wheel, args.output)
    link = wheels.record_tritonserver(args.output)
    console.print_result(
        {
            "tritonserver": str(args.output),
            "version": row["tritonServer"],
            "python": wheels.python_version(),
            "link": str(link),
        },
        f"{args.output}: tritonserver {row['tritonServer']} for Python {wheels.python_version()}; "
        "enginix serve finds it",
    )
    return 0
