"""The kind ``reference``."""

from __future__ import annotations

from enginix.kinds.registry.engine_kind import KindDescription, TritonSupport

KIND = KindDescription(
    name="reference",
    summary="the converted checkpoint in plain PyTorch",
    built_from="checkpoint",
    build="enginix.cli.engines.reference_build",
    weights_folder="checkpoint",
    is_portable=True,
    triton=TritonSupport(
        repository="enginix.kinds.reference.repository_content",
        packages=("numpy", "tokenizers", "torch"),
        has_ensemble=True,
        probe={"text_input": "A", "max_tokens": 1, "end_id": -1},
        one_machine_reason="it is one process",
    ),
)
