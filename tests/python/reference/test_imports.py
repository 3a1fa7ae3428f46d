"""What the executor brings into a process: not PyTorch's compiler, which takes seconds and needs `triton`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "python"


def test_the_compiler_of_pytorch_stays_out() -> None:
    script = (
        "import sys, enginix.reference.executor, enginix.reference.scheduler\n"
        "print(*[m for m in sys.modules if m.startswith(('torch._dynamo', 'torch._inductor', 'triton'))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
