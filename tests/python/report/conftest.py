"""Pages that are well formed and need no network: ``report_support`` for every test here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]
