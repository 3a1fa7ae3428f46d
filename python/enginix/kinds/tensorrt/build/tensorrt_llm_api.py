"""Run inside a runtime: TensorRT-LLM loads a Hugging Face model itself and saves the engine that it builds.

It imports nothing of enginix. Called with one argument, a JSON file with model, output, tensor_parallel_size,
pipeline_parallel_size, build_config and plugin_config.
"""

import json
import sys
from importlib import import_module
from typing import Any


def main(path: str) -> None:
    """Build and save; any exception ends the process with its traceback, which the caller reads."""
    with open(path, encoding="utf-8") as f:
        request: dict[str, Any] = json.load(f)
    # The default LLM class of 1.0 and later cannot save; this class is the TensorRT backend's.
    backend = import_module("tensorrt_llm._tensorrt_engine")
    builder = import_module("tensorrt_llm.builder")
    plugin = import_module("tensorrt_llm.plugin")
    plugins = plugin.PluginConfig()
    for name, value in request["plugin_config"].items():
        setattr(plugins, name, value)
    config = builder.BuildConfig(
        **{k: v for k, v in request["build_config"].items() if v is not None}, plugin_config=plugins
    )
    llm = backend.LLM(
        model=request["model"],
        tensor_parallel_size=request["tensor_parallel_size"],
        pipeline_parallel_size=request["pipeline_parallel_size"],
        build_config=config,
    )
    llm.save(request["output"])


# mpi4py's workers import this file again: without the guard they would start workers of their own.
if __name__ == "__main__":
    main(sys.argv[1])
