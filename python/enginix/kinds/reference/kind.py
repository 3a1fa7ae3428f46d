"""The kind ``reference``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import EngineKind, TritonSupport
from enginix.kinds.registry.model_verdict import ModelVerdict, list_conversion_obstacles
from enginix.tables import load_table


class ReferenceKind(EngineKind):
    """The description of ``reference``."""

    def judge_model(
        self, architecture: str | None, quantization: str | None, method: str | None = None
    ) -> ModelVerdict:
        why = list_conversion_obstacles(architecture, quantization, method, ("enginix",))
        rows = load_table("converters")["converters"]["enginix"]["architectures"]
        if not why and rows[architecture].get("reference") is False:
            why = [f"the reference executor does not compute {architecture}"]
        return ModelVerdict(not why, tuple(why), None)


KIND: EngineKind = ReferenceKind(
    name="reference",
    summary="the converted checkpoint in plain PyTorch",
    built_from="checkpoint",
    build="enginix.cli.engines.reference_build",
    converted_as="reference",
    has_target=False,
    weights_folder="checkpoint",
    triton=TritonSupport(
        repository="enginix.kinds.reference.repository_content",
        packages=("numpy", "tokenizers", "torch"),
        extra="serve",
        has_ensemble=True,
        probe={"text_input": "A", "max_tokens": 1, "end_id": -1},
        one_machine_reason="it is one process",
    ),
)
