"""Stand-in for tensorrt_llm: parses what the real one parses, computes nothing."""

import os
from pathlib import Path

from .standin import misbehaves
from .version import __version__

# As flashinfer does when tensorrt_llm imports it: directory and log exist from then on.
_base = os.environ.get("FLASHINFER_WORKSPACE_BASE") or os.path.expanduser("~")
Path(_base, ".cache", "flashinfer", __version__).mkdir(parents=True, exist_ok=True)
Path(_base, ".cache", "flashinfer", __version__, "flashinfer_jit.log").touch()
if misbehaves("home"):
    Path("/root/.cache/standin").mkdir(parents=True)

__all__ = ["__version__"]


def __getattr__(name):
    """The classes of the LLM API load PyTorch, which the programs do not need."""
    if name == "LLM":
        from .standin_llm import TorchLLM

        return TorchLLM
    if name in ("SamplingParams", "KvCacheConfig"):
        from . import llmapi

        return getattr(llmapi, name)
    raise AttributeError(name)
