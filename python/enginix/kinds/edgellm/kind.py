"""The kind ``edgellm``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import EngineKind, KindDescription
from enginix.kinds.registry.model_verdict import ModelVerdict, explain_architecture, list_targets
from enginix.model.number_formats import read_edgellm_formats
from enginix.tables import load_table


class EdgellmKind(KindDescription):
    """The description of ``edgellm``."""

    def judge_model(self, architecture: str | None, quantization: str | None) -> ModelVerdict:
        """Return whether a model can become this kind, and on which GPUs."""
        edge, formats = load_table("edgellm"), read_edgellm_formats()
        why = []
        if architecture not in edge["architectures"]:
            why.append(explain_architecture(architecture, "is not supported for Edge-LLM export"))
        if quantization is not None and quantization not in formats:
            why.append(f"format {quantization} is not supported for Edge-LLM export")
        if why:
            return ModelVerdict(False, tuple(why), ())
        least = formats[quantization]["minSm"] if quantization else 0
        sms = {payload["sm"] for payload in edge["payloads"]}
        return ModelVerdict(True, (), list_targets(lambda sm: sm >= least and sm in sms))


KIND: EngineKind = EdgellmKind(
    name="edgellm",
    summary="TensorRT Edge-LLM's engine, by way of a checked ONNX export",
    built_from="model",
    build_commands=("enginix edgellm-export MODEL", "enginix edgellm-build EXPORT --model MODEL"),
    memory_plan="enginix.kinds.edgellm.model_plan",
    is_compiled=True,
    server="tensorrt-edgellm-serve",
)
