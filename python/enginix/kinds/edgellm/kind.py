"""The kind ``edgellm``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import EngineKind
from enginix.kinds.registry.model_verdict import ModelVerdict, explain_architecture, list_format_targets
from enginix.model.number_formats import read_edgellm_formats
from enginix.tables import load_table


class EdgellmKind(EngineKind):
    """The description of ``edgellm``."""

    def judge_model(
        self, architecture: str | None, quantization: str | None, method: str | None = None
    ) -> ModelVerdict:
        edge, formats = load_table("edgellm"), read_edgellm_formats()
        why = []
        if architecture not in edge["architectures"]:
            why.append(explain_architecture(architecture, "is not supported for Edge-LLM export"))
        if method not in (None, "modelopt"):
            why.append(f"quantization method {method} is not supported for Edge-LLM export")
        elif quantization is not None and quantization not in formats:
            why.append(f"format {quantization} is not supported for Edge-LLM export")
        if why:
            return ModelVerdict(False, tuple(why), ())
        return ModelVerdict(True, (), list_format_targets(self.name, quantization, is_compiled=False))


KIND: EngineKind = EdgellmKind(
    name="edgellm",
    summary="TensorRT Edge-LLM's engine, by way of a checked ONNX export",
    built_from="model",
    build_commands=("enginix edgellm-export MODEL", "enginix edgellm-build EXPORT --model MODEL"),
    model_check="enginix.kinds.edgellm.source",
    memory_plan="enginix.kinds.edgellm.memory_plan",
    server="tensorrt-edgellm-serve",
    server_by_hand="enginix edgellm-serve {engine} --model MODEL --state DIR",
)
