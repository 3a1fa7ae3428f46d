"""vLLM's LLM class under the names of TensorRT-LLM's LLM API: a yardstick of tests, not a runtime of enginix.

``trtllm_script.py`` asks it as it asks TensorRT-LLM, so that questions, protocol and judge meet real kernels of
a foreign engine. Versions and class names that answers record say that it is vLLM.
"""

from importlib.metadata import PackageNotFoundError, version

from .llmapi import LLM, KvCacheConfig, SamplingParams

try:
    __version__ = f"vLLM {version('vllm')}"
except PackageNotFoundError:
    __version__ = "a stand-in of vLLM"

__all__ = ["LLM", "KvCacheConfig", "SamplingParams", "__version__"]
