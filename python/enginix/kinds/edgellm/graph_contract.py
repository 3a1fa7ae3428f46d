"""Compare exactly what of a graph is known exactly: inputs and outputs, operators, norms.

What the gate ``export`` executes is a few hundred tokens. A constant that is a little off, a type that only
TensorRT would meet, or a node that begins to matter at a later position are not seen there. The untouched
exporter writes one interface for each model (the wheel: models/default/modeling_default.py and
onnx/export.py), and a norm's epsilon is in the model's config.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from enginix.kinds.edgellm.errors import refuse_differences
from enginix.kinds.edgellm.graph import PLUGIN_DOMAIN, Graph
from enginix.kinds.edgellm.source import ExportSource

Interface = dict[str, tuple[str, tuple[int | str, ...]]]
PAGE = 128  # tokens of a page of the KV cache
# Of ONNX's own; seen in the exports of all architectures and formats.
OPERATORS = frozenset({
    "Add", "Cast", "Concat", "Gather", "Gemm", "MatMul", "Mul", "Pow", "Reciprocal", "ReduceMean",
    "Reshape", "Shape", "Sigmoid", "Sqrt", "Unsqueeze",
})  # fmt: skip
QUANTIZED_OPERATORS = frozenset({"DequantizeLinear", "QuantizeLinear", "Transpose"})
# Nodes that read scales.
_SCALED = ("DequantizeLinear", "QuantizeLinear", "TRT_FP4DynamicQuantize")
# Inputs that other nodes than the attention read; all that says a token's position is the attention's alone.
_READERS = {
    "inputs_embeds": {"Shape", "Unsqueeze", "Cast", "Add"},
    "logits_indices": {"Reshape", "Gather"},
}


def describe_interface(source: ExportSource) -> Interface:
    """Return the inputs and outputs that NVIDIA's exporter writes for a model."""
    model, tokens, sequences = source.model, "physical_tokens", "num_sequences"
    cache = (
        "FLOAT8E4M3FN" if source.kv_cache == "FP8" else "FLOAT16",
        (2, "num_pages", PAGE, model.num_kv_heads, model.head_dim),
    )
    each = [
        n for i in range(source.model.num_layers) for n in (f"past_key_values_{i}", f"present_key_values_{i}")
    ]
    of_sequences = ("query_lengths", "past_lengths", "attention_sequence_lengths", "state_indices")
    return {
        "inputs_embeds": ("FLOAT16", (tokens, model.hidden_size)),
        "rope_rotary_cos_sin": ("FLOAT", (tokens, model.head_dim)),
        "positions": ("INT32", (tokens,)),
        "query_start_offsets": ("INT32", (f"{sequences} + 1",)),
        **dict.fromkeys(of_sequences, ("INT32", (sequences,))),
        "execution_phase_marker": ("INT32", ("execution_phase_extent",)),
        "context_sequence_count_carrier": ("INT32", ("num_context_sequences",)),
        "kv_page_table": ("INT32", (sequences, 2, "max_pages_per_seq")),
        "logits_indices": ("INT64", (sequences,)),
        "logits": ("FLOAT", (sequences, model.vocab_size)),
        **dict.fromkeys(each, cache),
    }


def check_contract(graph: Graph, source: ExportSource) -> None:
    """Compare an exported graph with what NVIDIA's exporter writes for its model.

    Raises:
        ExportError: the first difference.
    """
    refuse_differences(
        chain(
            find_interface_differences(graph, source),
            find_other_readers(graph),
            find_other_operators(graph, source),
            find_norm_differences(graph, source),
            find_other_numbers(graph),
        ),
        graph.path,
    )


def find_interface_differences(graph: Graph, source: ExportSource) -> Iterator[str]:
    """Yield inputs and outputs that are missing, unknown, or of another type or shape."""
    expected = describe_interface(source)
    outputs = {n for n in expected if n == "logits" or n.startswith("present_key_values_")}
    for kind, found, known in (
        ("input", graph.inputs, set(expected) - outputs),
        ("output", graph.outputs, outputs),
    ):
        for name in sorted(set(found) ^ known):
            problem = "is missing" if name in known else "has no place in an export of this model"
            yield f"{kind} {name} {problem}"
        if len(found) != len(known):
            yield f"two of the {kind}s have one name"
    for name, (dtype, shape) in expected.items():
        stated, dimensions = graph.interface[name]
        if (stated, dimensions) != (dtype, shape):
            yield f"{name} is {stated} {list(dimensions)}, an export of this model has {dtype} {list(shape)}"


def find_other_operators(graph: Graph, source: ExportSource) -> Iterator[str]:
    """Yield operators that the exporter's graphs do not have. Nodes of other domains are the gate's."""
    known = OPERATORS | (QUANTIZED_OPERATORS if source.quantization is not None else frozenset())
    for node in graph.nodes:
        if node.domain in ("", "ai.onnx") and node.op not in known:
            yield f"node {node.name or node.outputs[0]} is {node.op}, which no export of such a model has"


def find_norm_differences(graph: Graph, source: ExportSource) -> Iterator[str]:
    """Yield roots of no RMSNorm, and RMSNorms that do not add the model's epsilon, as float32 has it."""
    epsilon, norms = np.float32(source.model.norm_epsilon), 2 * source.model.num_layers + 1
    roots = [node for node in graph.nodes if node.op == "Sqrt"]
    if len(roots) != norms:
        yield f"{len(roots)} norms in the graph, {norms} in {source.model.num_layers} layers"
    for root in roots:
        add = graph.producer.get(root.inputs[0])
        if epsilon == 0 and (add is None or add.op != "Add"):
            continue  # PyTorch leaves an addition of nothing out
        constants = [graph.constants[n] for n in add.inputs if n in graph.constants] if add else []
        if add is None or add.op != "Add" or len(constants) != 1 or constants[0].dtype != "FLOAT":
            yield f"{root.name or root.outputs[0]}: no epsilon"
            continue
        values = constants[0].array().reshape(-1)
        if values.size != 1 or values[0] != epsilon:
            name, stated = (
                add.name or add.outputs[0],
                values[0] if values.size == 1 else f"{values.size} numbers",
            )
            yield f"{name}: the norm's epsilon is {stated!s}, the model's is {epsilon!s}"


def find_other_numbers(graph: Graph) -> Iterator[str]:
    """Yield single numbers that are no square's exponent, epsilon or scale, and products with a factor."""
    for constant in graph.constants.values():
        if constant.elements != 1 or constant.dtype not in ("FLOAT", "FLOAT16"):
            continue
        for node in graph.consumers.get(constant.name, ()):
            is_exponent = node.op == "Pow" and float(constant.array().reshape(-1)[0]) == 2
            is_epsilon = node.op == "Add" and all(
                reader.op == "Sqrt" for out in node.outputs for reader in graph.consumers.get(out, ())
            )
            if not is_exponent and not is_epsilon and node.op not in _SCALED:
                yield (
                    f"{node.op} ({node.name or node.outputs[0]}) reads the number {constant.name}, which no "
                    "export of this model has there"
                )
    for node in graph.nodes:
        if node.op == "Gemm" and {node.attributes.get(key, 1.0) for key in ("alpha", "beta")} != {1.0}:
            yield f"{node.name or node.outputs[0]} has a factor"


def find_other_readers(graph: Graph) -> Iterator[str]:
    """Yield readers besides the attention of what says a token's position, sequence or page.

    Without them all else is the same at each position, also beyond those that the gate executes.
    """
    for name in graph.inputs:
        for node in graph.consumers.get(name, ()):
            is_attention = node.op == "AttentionPlugin" and node.domain == PLUGIN_DOMAIN
            if not is_attention and node.op not in _READERS.get(name, ()):
                reader = f"{node.op} ({node.name or node.outputs[0]})"
                yield f"{name} is read by {reader}, not by attention alone"
