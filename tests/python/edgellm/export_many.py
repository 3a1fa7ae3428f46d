"""Exports models in one process, in the Python that has NVIDIA's exporter, which starts slowly.

python export_many.py OUT MODEL…        prints a JSON object a model: name, rc, what it says, seconds
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from enginix.errors import EnginixError
from enginix.kinds.edgellm import export


def run_exporter(program: Path, model: Path, partial: Path, words: list[str]) -> None:
    """Runs NVIDIA's program here, in place of a process of its own."""
    from tensorrt_edgellm.scripts.export import main

    sys.argv = [str(program), *words, str(model), str(partial)]
    try:
        main()
    except SystemExit as e:
        if e.code:
            raise export.explain_export_failure(int(e.code), "", model, partial) from e


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    export._run_exporter = run_exporter
    out = Path(sys.argv[1])
    for model in map(Path, sys.argv[2:]):
        begin, rc, text = time.monotonic(), 0, ""
        try:
            export.export_model(model, out / model.name)
        except EnginixError as e:
            rc, text = e.exit_code, str(e)
        row = {"name": model.name, "rc": rc, "text": text, "seconds": round(time.monotonic() - begin, 2)}
        sys.stderr.write(json.dumps(row) + "\n")
