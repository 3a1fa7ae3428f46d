"""The kind ``llmapi``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import EngineKind, TritonSupport
from enginix.kinds.registry.model_verdict import ModelVerdict, list_format_targets
from enginix.model.llmapi_advice import explain_no_pytorch_class
from enginix.model.number_formats import explain_no_llmapi, read_algorithms


class LlmapiKind(EngineKind):
    """The description of ``llmapi``."""

    def judge_model(
        self, architecture: str | None, quantization: str | None, method: str | None = None
    ) -> ModelVerdict:
        # As in evaluation (nix/check/target.nix, computes): nothing is compiled ahead, so what rules a target
        # out is the SM, or a number format that the backend or the GPU lacks.
        row = read_algorithms().get(quantization or "NO_QUANT")
        if row is not None and row["llmapi"] is False:
            return ModelVerdict(False, (explain_no_llmapi(str(quantization), row),), ())
        if no_class := explain_no_pytorch_class(architecture):
            return ModelVerdict(False, (no_class,), ())
        why = "the models that the runtime supports are not known"
        return ModelVerdict(None, (why,), list_format_targets(self.name, quantization, is_compiled=False))


KIND: EngineKind = LlmapiKind(
    name="llmapi",
    summary="the model and arguments for TensorRT-LLM's PyTorch backend",
    built_from="model",
    build="enginix.cli.engines.trtllm_build",
    weights_folder="model",
    has_parallelism=True,
    server="trtllm-serve",
    triton=TritonSupport(
        repository="enginix.kinds.llmapi.repository_content",
        packages=("numpy", "tensorrt_llm"),
        extra=None,
        has_ensemble=False,
        probe={"text_input": "A", "sampling_param_max_tokens": 1},
        starts_workers=True,
        one_machine_reason="its LLM class starts its own processes, on its machine alone",
    ),
)
