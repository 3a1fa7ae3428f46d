"""The kind ``llmapi``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import KindDescription, TritonSupport

KIND = KindDescription(
    name="llmapi",
    summary="the model and arguments for TensorRT-LLM's PyTorch backend",
    built_from="model",
    build="enginix.cli.engines.trtllm_build",
    weights_folder="model",
    has_parallelism=True,
    runs_in_image=True,
    server="trtllm-serve",
    triton=TritonSupport(
        repository="enginix.kinds.llmapi.repository_content",
        packages=("numpy", "tensorrt_llm"),
        has_ensemble=False,
        probe={"text_input": "A", "sampling_param_max_tokens": 1},
        starts_workers=True,
        one_machine_reason="its LLM class starts its own processes, on its machine alone",
    ),
)
