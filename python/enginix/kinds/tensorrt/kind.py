"""The kind ``tensorrt``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import KindDescription, TritonSupport

KIND = KindDescription(
    name="tensorrt",
    summary="TensorRT-LLM's compiled plan",
    built_from="checkpoint",
    build="enginix.cli.engines.trtllm_build",
    has_parallelism=True,
    is_compiled=True,
    runs_in_image=True,
    server="trtllm-serve",
    triton=TritonSupport(
        repository="enginix.kinds.tensorrt.repository_content",
        packages=("numpy", "torch", "transformers"),
        has_ensemble=True,
        probe={"text_input": "A", "max_tokens": 1, "end_id": -1},
        has_rank_processes=True,
    ),
)
