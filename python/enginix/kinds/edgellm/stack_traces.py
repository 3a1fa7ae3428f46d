"""Remove the stack traces that PyTorch writes into each node of an exported graph.

Stack traces name the directory that Python is installed in. They would tie the export to that Python, and
make two installations' exports differ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from enginix.kinds.edgellm.errors import ExportError

TRACE_KEY = "pkg.torch.onnx.stack_trace"


def _remove_traces(entries: Any) -> bool:
    remaining = [(e.key, e.value) for e in entries if e.key != TRACE_KEY]
    if len(remaining) == len(entries):
        return False
    del entries[:]
    for key, value in remaining:
        entry = entries.add()
        entry.key, entry.value = key, value
    return True


def strip_stack_traces(path: Path) -> int:
    """Remove stack traces from a graph in place.

    Returns:
        Number of nodes with a stack trace.

    Raises:
        ExportError: not an ONNX graph, or the graph still names this Python's directory.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as e:
        raise ExportError("the exporter wrote no graph", where=str(path)) from e
    except Exception as e:  # protobuf's own errors share no base class over its versions
        raise ExportError(f"not an ONNX file: {e}", where=str(path)) from e
    graph = model.graph
    removed = sum(_remove_traces(node.metadata_props) for node in graph.node)
    for part in (*graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, model):
        _remove_traces(part.metadata_props)
    data = model.SerializeToString(deterministic=True)
    if sys.prefix.encode() in data:
        raise ExportError(f"the graph names {sys.prefix}, where this Python is installed", where=str(path))
    path.write_bytes(data)
    return removed
