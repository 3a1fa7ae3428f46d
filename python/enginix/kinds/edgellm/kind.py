"""The kind ``edgellm``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import KindDescription

KIND = KindDescription(
    name="edgellm",
    summary="TensorRT Edge-LLM's engine, by way of a checked ONNX export",
    built_from="model",
    build_commands=("enginix edgellm-export MODEL", "enginix edgellm-build EXPORT --model MODEL"),
    memory_plan="enginix.kinds.edgellm.model_plan",
    is_compiled=True,
    server="tensorrt-edgellm-serve",
)
