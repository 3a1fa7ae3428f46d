"""Whether TensorRT-LLM has a class that it can build engines of an architecture with."""

from __future__ import annotations

from enginix.model.family_rows import find_written_name
from enginix.tables import load_table


def explain_no_engine_class(architecture: str | None) -> str | None:
    """Return why no engine of kind tensorrt can be built of an architecture; None where one can."""
    rows, written = load_table("engine_classes"), find_written_name(architecture)
    if not architecture:
        return "the model names no architecture"
    if written not in rows["engine"]:
        return f"{architecture} has no engine in TensorRT-LLM 1.1 and 1.2"
    if reason := rows["unbuildable"].get(written):
        return f"TensorRT-LLM 1.1 and 1.2 build no engine of {architecture}: {reason}"
    return None
