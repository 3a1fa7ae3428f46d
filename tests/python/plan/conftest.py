"""Makes the golden archive's reader and the test hub importable."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS), *(str(TESTS / "python" / name) for name in ("checkpoint", "plan"))]
