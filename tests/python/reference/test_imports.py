"""What the executor brings into a process: not PyTorch's compiler, which takes seconds and needs `triton`."""

from __future__ import annotations

import subprocess
import sys


def test_the_compiler_of_pytorch_stays_out() -> None:
    script = (
        "import sys, enginix.reference.executor, enginix.reference.scheduler\n"
        "print(*[m for m in sys.modules if m.startswith(('torch._dynamo', 'torch._inductor', 'triton'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
