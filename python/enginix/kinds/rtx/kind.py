"""The kind ``rtx``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import EngineKind, OwnBuild, TritonSupport
from enginix.kinds.registry.model_verdict import (
    ModelVerdict,
    explain_architecture,
    list_conversion_obstacles,
    list_kind_targets,
)
from enginix.model.rtx_limits import explain_length_dependence, explain_unfused_heads
from enginix.tables import load_table


class RtxKind(EngineKind):
    """The description of ``rtx``."""

    def judge_model(
        self, architecture: str | None, quantization: str | None, method: str | None = None
    ) -> ModelVerdict:
        table, name = load_table("rtx"), quantization or "NO_QUANT"
        why = list_conversion_obstacles(architecture, quantization, method, ("enginix",))
        if not why and architecture not in table["architectures"]["taken"]:
            why.append(explain_architecture(architecture, "is not taken by kind rtx"))
        if not why and name not in table["formats"]["taken"]:
            why.append(f"format {name} is not taken by kind rtx")
        if why:
            return ModelVerdict(False, tuple(why), ())
        sms, gpus = table["formats"]["taken"][name], load_table("gpus")["gpus"]
        able = tuple(gpu for gpu in list_kind_targets(self.name) if gpus[gpu]["sm"] in sms)
        return ModelVerdict(True, (), able)

    def explain_rotation(self, rotation: str) -> str | None:
        """Return why a rotation is not taken: an engine's is one table."""
        return explain_length_dependence(rotation)

    def explain_head_size(self, size: int) -> str | None:
        """Return why TensorRT for RTX has no fused attention for heads of a size."""
        return explain_unfused_heads(size)


KIND: EngineKind = RtxKind(
    name="rtx",
    summary="TensorRT for RTX's engine, built without a GPU of a verified network",
    built_from="checkpoint",
    build_commands=("enginix rtx-build CHECKPOINT --model MODEL",),
    own_build=OwnBuild("rtx-build", extra="rtx"),
    converted_as="reference",
    has_target=False,
    has_interpreter=True,
    gate_asker="enginix.kinds.rtx_serving.gate_report",
    memory_plan="enginix.kinds.rtx_planning.memory_plan",
    triton=TritonSupport(
        repository="enginix.kinds.rtx_serving.repository_content",
        packages=("numpy", "tokenizers", "torch", "ml_dtypes", "tensorrt_rtx_bindings"),
        extra="rtx",
        has_ensemble=True,
        probe={"text_input": "A", "max_tokens": 1, "end_id": -1},
        one_machine_reason="it runs on one GPU",
        start="enginix.kinds.rtx_serving.start",
    ),
)
