"""The kind ``tensorrt``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import EngineKind, TritonSupport
from enginix.kinds.registry.model_verdict import (
    ModelVerdict,
    list_conversion_obstacles,
    list_format_targets,
)
from enginix.model.engine_classes import explain_no_engine_class
from enginix.model.number_formats import read_algorithms
from enginix.tables import load_table


class TensorrtKind(EngineKind):
    """The description of ``tensorrt``."""

    def judge_model(
        self, architecture: str | None, quantization: str | None, method: str | None = None
    ) -> ModelVerdict:
        if no_class := explain_no_engine_class(architecture):
            return ModelVerdict(False, (no_class,), ())
        converters = load_table("converters")["converters"]
        why = list_conversion_obstacles(architecture, quantization, method, converters)
        row = read_algorithms().get(quantization or "NO_QUANT")
        if not why and (row is None or not row["engine"]):
            why.append(f"no engine for format {quantization}")
        if why:
            return ModelVerdict(False, tuple(why), ())
        return ModelVerdict(True, (), list_format_targets(self.name, quantization, is_compiled=True))


KIND: EngineKind = TensorrtKind(
    name="tensorrt",
    summary="TensorRT-LLM's compiled plan",
    built_from="checkpoint",
    build="enginix.cli.engines.trtllm_build",
    has_parallelism=True,
    has_pipeline=True,
    server="trtllm-serve",
    triton=TritonSupport(
        repository="enginix.kinds.tensorrt.repository_content",
        packages=("numpy", "torch", "transformers"),
        extra=None,
        has_ensemble=True,
        probe={"text_input": "A", "max_tokens": 1, "end_id": -1},
        has_rank_processes=True,
    ),
)
