"""Runs the checks on an export again: python check_export.py EXPORT MODEL. In the Python that has onnx."""

import json
import sys
from pathlib import Path

from enginix.errors import EnginixError
from enginix.kinds.edgellm import checks, source

if __name__ == "__main__":
    try:
        found = checks.check_exported_model(
            Path(sys.argv[1]) / "llm", source.read_export_source(Path(sys.argv[2]))
        )
    except EnginixError as e:
        sys.stderr.write(f"error: {e}\n")
        raise SystemExit(e.exit_code) from None
    sys.stdout.write(json.dumps(found))
