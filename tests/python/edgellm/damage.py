"""Damage a finished export in one way at a time; tell what notices: checks, the gate ``export``, or neither.

python damage.py EXPORT MODEL        in the Python that has NVIDIA's wheel; prints JSON: damage → who noticed
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from enginix.errors import EnginixError
from enginix.kinds.edgellm import checks, graph, source
from enginix.kinds.edgellm.execution import export_gate, model_logits

Damage = Callable[["Export"], None]
PRODUCTS = ("MatMul", "Int4GroupwiseGemmPlugin", "Int4GroupwiseGemmPluginV2")


class NotApplicableError(Exception):
    """The export has nothing of this sort."""


class Export:
    """A graph to damage."""

    def __init__(self, path: Path, *, inline: bool = False) -> None:
        self.directory = path.parent
        self.model = onnx.load(str(path), load_external_data=not inline)
        self.graph = self.model.graph

    @property
    def constants(self) -> dict[str, Any]:
        return {t.name: t for t in self.graph.initializer}

    def nodes(self, *ops: str) -> list[Any]:
        return [n for n in self.graph.node if n.op_type in ops]

    def producer(self, name: str) -> Any:
        return next((n for n in self.graph.node if name in n.output), None)

    def exchange(self, first: str, second: str) -> None:
        """Exchange the values of two constants."""
        a, b = self.constants[first], self.constants[second]
        assert list(a.dims) == list(b.dims) and first != second, (first, second)
        a.raw_data, b.raw_data = numpy_helper_bytes(b), numpy_helper_bytes(a)

    def change(self, name: str, function: Callable[[Any], Any]) -> None:
        tensor = self.constants[name]
        array = numpy_helper.to_array(tensor)
        changed = np.asarray(function(array.copy())).astype(array.dtype).reshape(array.shape)
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    def set_attribute(self, op: str, name: str, value: Any) -> None:
        for node in self.nodes(op):
            for attribute in node.attribute:
                if attribute.name == name:
                    attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    def weight_constants(self, product: Any) -> list[str]:
        """Names of the constants of a product's weight: codes first, then scales."""
        found: list[str] = []
        pending = list(product.input[1:])
        while pending:
            name = pending.pop(0)
            if name in self.constants:
                found.append(name)
            else:
                pending += list(self.producer(name).input)
        return [n for n in found if self.constants[n].data_type != onnx.TensorProto.INT64]

    def projection(self, layer: int, name: str) -> Any:
        """A product node: q, k, v (or qkv), o, gate, up, down."""
        products = self.nodes(*PRODUCTS)
        layers = len(self.nodes("AttentionPlugin"))
        each = len(products) // layers
        names = (
            ["qkv", "o", "gate", "up", "down"] if each == 5 else ["q", "k", "v", "o", "gate", "up", "down"]
        )
        if name not in names:
            raise NotApplicableError(name)
        return products[layer * each + names.index(name)]

    def exchange_projections(self, first: Any, second: Any) -> None:
        pairs = zip(self.weight_constants(first), self.weight_constants(second), strict=True)
        for a, b in pairs:
            if a != b:
                self.exchange(a, b)


def numpy_helper_bytes(tensor: Any) -> bytes:
    assert tensor.raw_data
    return bytes(tensor.raw_data)


def drop_initializer(e: Export) -> None:
    e.graph.initializer.remove(e.constants[e.weight_constants(e.projection(0, "o"))[0]])


def flip_bit(e: Export) -> None:
    tensor = e.constants[e.weight_constants(e.projection(0, "gate"))[0]]
    data = bytearray(tensor.raw_data)
    data[10] ^= 1
    tensor.raw_data = bytes(data)


def exchange_key_value(e: Export) -> None:
    try:
        return e.exchange_projections(e.projection(0, "k"), e.projection(0, "v"))
    except NotApplicableError:
        pass
    at = {a.name: onnx.helper.get_attribute_value(a) for a in e.nodes("AttentionPlugin")[0].attribute}
    q, k = (at[n] * at["head_size"] for n in ("num_q_heads", "num_kv_heads"))
    order = np.r_[0:q, q + k : q + 2 * k, q : q + k]
    for name in e.weight_constants(e.projection(0, "qkv")):
        tensor = e.constants[name]
        rows = list(tensor.dims)
        if q + 2 * k in rows:
            width = len(tensor.raw_data) // int(np.prod(rows[: rows.index(q + 2 * k) + 1]))
            data = np.frombuffer(tensor.raw_data, np.uint8).reshape(*rows[: rows.index(q + 2 * k) + 1], width)
            tensor.raw_data = np.take(data, order, axis=rows.index(q + 2 * k)).tobytes()


def norm_weights(e: Export) -> list[str]:
    return [n for n in e.constants if n.endswith("layernorm.weight")]


def exchange_head_norms(e: Export) -> None:
    names = [n for n in e.nodes("AttentionPlugin")[0].input if "norm_gamma" in n]
    e.exchange(*names)


def exchange_norms(e: Export) -> None:
    e.exchange(*norm_weights(e)[:2])


def exchange_norm_inputs(e: Export) -> None:
    first, second = [n for n in e.nodes("Mul") if n.input[0] in norm_weights(e)][:2]
    first.input[0], second.input[0] = second.input[0], first.input[0]


def read_gate_for_up(e: Export) -> None:
    gate, up = e.projection(0, "gate"), e.projection(0, "up")
    for number in range(1, len(gate.input)):
        up.input[number] = gate.input[number]


def set_epsilon(e: Export) -> None:
    add = e.producer(e.nodes("Sqrt")[0].input[0])
    tensor = numpy_helper.from_array(np.array(0.5, np.float32), "damaged_epsilon")
    e.graph.initializer.append(tensor)
    add.input[1] = tensor.name


def replace_sigmoid(e: Export) -> None:
    e.nodes("Sigmoid")[0].op_type = "Tanh"


def residual_adds(e: Export) -> list[Any]:
    return [n for n in e.nodes("Add") if not any(i in e.constants for i in n.input)]


def double_residual(e: Export) -> None:
    add = residual_adds(e)[0]
    add.input[0] = add.input[1]


def skip_layers(e: Export) -> None:
    adds = residual_adds(e)
    first, last = adds[1].output[0], adds[-1].output[0]
    for node in e.graph.node:
        for number, name in enumerate(node.input):
            if name == last:
                node.input[number] = first


def flip_head_norm(e: Export) -> None:
    at = {a.name: onnx.helper.get_attribute_value(a) for a in e.nodes("AttentionPlugin")[0].attribute}
    e.set_attribute("AttentionPlugin", "enable_qk_norm", 1 - at["enable_qk_norm"])


def rename_plugin(e: Export) -> None:
    e.nodes("AttentionPlugin")[0].op_type = "SparseAttentionPlugin"


def exchange_caches(e: Export) -> None:
    """Layers 0 and 1 take each other's cache."""
    first, second = e.nodes("AttentionPlugin")[:2]
    first.input[1], second.input[1] = second.input[1], first.input[1]


def exchange_query_lengths(e: Export) -> None:
    """A plugin reads the lengths before in place of the lengths of the queries, and the other way round."""
    node = e.nodes("AttentionPlugin")[0]
    node.input[2], node.input[4] = node.input[4], node.input[2]


def widen_norm(e: Export) -> None:
    """A constant of another type, with the same values."""
    tensor = e.constants[norm_weights(e)[0]]
    wide = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def drop_node(e: Export) -> None:
    e.graph.node.remove(e.nodes("Sigmoid")[0])


def halve_exponent(e: Export) -> None:
    """The square in a norm becomes another power."""
    power = e.nodes("Pow")[0]
    tensor = numpy_helper.from_array(np.array(1.5, np.float32), "damaged_exponent")
    e.graph.initializer.append(tensor)
    power.input[1] = tensor.name


def repeat_output(e: Export) -> None:
    """A layer gives out the cache of the one before it."""
    first, second = e.graph.output[1].name, e.graph.output[2].name
    node = e.producer(second)
    node.output[list(node.output).index(second)] = "damaged_cache"
    e.graph.node.append(onnx.helper.make_node("Identity", [first], [second], "damaged_identity"))


def use_unknown_domain(e: Export) -> None:
    e.nodes("Sigmoid")[0].domain = "com.example"
    e.model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


def reverse_heads(e: Export) -> None:
    """The heads of the attention's output are turned round before they are joined."""
    node = e.nodes("AttentionPlugin")[0]
    name = node.output[0]
    node.output[0] = "damaged_heads"
    parts = {"starts": [-1], "ends": [-(2**31)], "axes": [1], "steps": [-1]}
    for part, values in parts.items():
        e.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"damaged_{part}"))
    inputs = ["damaged_heads", *(f"damaged_{part}" for part in parts)]
    at = list(e.graph.node).index(node) + 1
    e.graph.node.insert(at, onnx.helper.make_node("Slice", inputs, [name], "damaged_slice"))


def add_constant(e: Export, name: str, values: Any) -> str:
    e.graph.initializer.append(numpy_helper.from_array(values, f"damaged_{name}"))
    return f"damaged_{name}"


def insert_before(e: Export, node: Any, at: int, op: str, *more: str, **attributes: Any) -> None:
    """Put a node between a node and one of its inputs."""
    name = f"damaged_{op}"
    made = onnx.helper.make_node(op, [node.input[at], *more], [name], f"node_{name}", **attributes)
    node.input[at] = name
    e.graph.node.insert(list(e.graph.node).index(node), made)


def double_epsilons(e: Export) -> None:
    epsilon = add_constant(e, "epsilon", np.array(2e-6, np.float32))
    for root in e.nodes("Sqrt"):
        e.producer(root.input[0]).input[1] = epsilon


def double_plugin_epsilon(e: Export) -> None:
    e.set_attribute("AttentionPlugin", "rms_norm_eps", 2e-6)


def erase_late_logits(e: Export) -> None:
    """From position 1000 on, which no prompt of the gate reaches, logits are 0."""
    product = e.producer(e.graph.output[0].name)
    while product.op_type not in ("Gemm", "MatMul"):
        product = e.producer(product.input[0])
    rows = e.nodes("Gather")[-1]
    at = list(e.graph.node).index(rows)
    limit = add_constant(e, "limit", np.array(1000, np.int32))
    column = add_constant(e, "column", np.array([-1, 1], np.int64))
    for node in (
        onnx.helper.make_node("Reshape", ["damaged_float", column], ["damaged_mask"]),
        onnx.helper.make_node("Cast", ["damaged_early"], ["damaged_float"], to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node("Less", ["positions", limit], ["damaged_early"]),
    ):
        e.graph.node.insert(at, node)
    insert_before(e, rows, 0, "Mul", "damaged_mask")


def clip_attention(e: Export) -> None:
    """Bounds that no prompt of the gate reaches."""
    least, most = (add_constant(e, f"clip{n}", np.array(n, np.float16)) for n in (-60000, 60000))
    plugin = e.nodes("AttentionPlugin")[0]
    reader = next(n for n in e.graph.node if plugin.output[0] in n.input)
    insert_before(e, reader, list(reader.input).index(plugin.output[0]), "Clip", least, most)


def scale_logits(e: Export) -> None:
    last = e.producer(e.graph.output[0].name)
    insert_before(e, last, 0, "Mul", add_constant(e, "factor", np.array(1.0003, np.float32)))


def find_value(e: Export, name: str) -> Any:
    return next(v for v in (*e.graph.input, *e.graph.output) if v.name == name).type.tensor_type


def widen_lengths(e: Export) -> None:
    find_value(e, "past_lengths").elem_type = onnx.TensorProto.INT64


def fix_sequences(e: Export) -> None:
    for value in (*e.graph.input, *e.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "num_sequences":
                dimension.dim_value = 3


def fix_pages(e: Export) -> None:
    find_value(e, "kv_page_table").shape.dim[2].dim_value = 16


def add_output(e: Export) -> None:
    name = e.nodes("Sigmoid")[0].output[0]
    e.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, None))


def add_embedding_tensor(e: Export) -> None:
    path = e.directory / "embedding.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "embedding_scale": np.ones(4, np.float32)}, path)


def exchange_values(first: tuple[int, str], second: tuple[int, str]) -> Damage:
    return lambda e: e.exchange_projections(e.projection(*first), e.projection(*second))


def attribute(name: str, value: Any) -> Damage:
    return lambda e: e.set_attribute("AttentionPlugin", name, value)


GRAPH: dict[str, Damage] = {
    "an initializer dropped": drop_initializer,
    "one bit of a weight flipped": flip_bit,
    "gate and up exchanged, values": exchange_values((0, "gate"), (0, "up")),
    "o of two layers exchanged, values": exchange_values((0, "o"), (1, "o")),
    "k and v exchanged": exchange_key_value,
    "q_norm and k_norm exchanged": exchange_head_norms,
    "two norms exchanged, values": exchange_norms,
    "two norms exchanged, wiring": exchange_norm_inputs,
    "up reads gate's weight": read_gate_for_up,
    "epsilon of one norm 0.5": set_epsilon,
    "Sigmoid is Tanh": replace_sigmoid,
    "first residual adds attention twice": double_residual,
    "last norm reads layer 0": skip_layers,
    "attention_scale x 10": attribute("attention_scale", 1.7677),
    "sliding_window_size 4": attribute("sliding_window_size", 4),
    "enable_qk_norm flipped": flip_head_norm,
    "rms_norm_eps of the plugin 0.5": attribute("rms_norm_eps", 0.5),
    "qkv_scales 3 without FP8 cache": attribute("qkv_scales", [3.0, 3.0, 3.0]),
    "num_q_heads wrong": attribute("num_q_heads", 2),
    "a plugin node without a definition": rename_plugin,
    "caches of two layers exchanged": exchange_caches,
    "two inputs of the plugin exchanged": exchange_query_lengths,
    "a norm's constant in float32": widen_norm,
    "a node dropped": drop_node,
    "power 1.5 in a norm": halve_exponent,
    "a cache given out twice": repeat_output,
    "a node of an unknown domain": use_unknown_domain,
    "heads in reverse order": reverse_heads,
    "epsilon of every norm x 2": double_epsilons,
    "rms_norm_eps of the plugin x 2": double_plugin_epsilon,
    "attention_scale x 1.0001": attribute("attention_scale", 0.1767767 * 1.0001),
    "logits 0 from position 1000 on": erase_late_logits,
    "attention clipped at 60000": clip_attention,
    "logits x 1.0003": scale_logits,
    "past_lengths in INT64": widen_lengths,
    "number of sequences fixed": fix_sequences,
    "pages of a sequence fixed": fix_pages,
    "one more output": add_output,
    "one more embedding tensor": add_embedding_tensor,
}  # fmt: skip


def scales(e: Export, ending: str) -> list[str]:
    """Names of scale constants with distinct values."""
    names = [n for n in e.constants if (ending in n and "global" not in n) or n.startswith(ending)]
    distinct = {numpy_helper_bytes(e.constants[n]) + bytes(len(e.constants[n].dims)): n for n in names}
    return sorted(distinct.values(), key=names.index)


def pick(e: Export, ending: str, count: int = 1) -> list[str]:
    names = scales(e, ending)
    for name in names:
        alike = [n for n in names if list(e.constants[n].dims) == list(e.constants[name].dims)]
        if len(alike) >= count:
            return alike[:count]
    raise NotApplicableError(ending)


def multiply(ending: str, factor: float) -> Damage:
    return lambda e: e.change(pick(e, ending)[0], lambda a: np.asarray(a, np.float32) * factor)


def exchange_scales(ending: str) -> Damage:
    return lambda e: e.exchange(*pick(e, ending, 2))


def rewire(ending: str, *, ops: tuple[str, ...] | None = None) -> Damage:
    """Nodes read another scale of the same shape; all readers of one, or those of some operators."""

    def damage(e: Export) -> None:
        first, second = pick(e, ending, 2)
        hit = False
        for node in e.graph.node:
            for number, name in enumerate(node.input):
                if name == second and (ops is None or node.op_type in ops):
                    node.input[number], hit = first, True
        if not hit:
            raise NotApplicableError(ending)

    return damage


def reorder_bytes(e: Export) -> None:
    tensor = e.constants[e.weight_constants(e.projection(0, "o"))[0]]
    data = bytearray(tensor.raw_data)
    data[0], data[-1] = data[-1], data[0]
    data[1:5] = data[1:5][::-1]
    tensor.raw_data = bytes(data)


def skip_quantizer(e: Export) -> None:
    quantizers = e.nodes("QuantizeLinear", "TRT_FP4DynamicQuantize")
    if not quantizers:
        raise NotApplicableError("quantizer")
    node = quantizers[1]
    for reader in e.graph.node:
        if node.output[0] in reader.input:
            value = reader.output[0]
            for last in e.graph.node:
                for number, name in enumerate(last.input):
                    if name == value:
                        last.input[number] = node.input[0]


def quantize_as_integers(e: Export) -> None:
    for node in e.nodes("QuantizeLinear"):
        for item in node.attribute:
            if item.name == "output_dtype":
                item.i = onnx.TensorProto.INT8 if item.i != onnx.TensorProto.INT8 else 17
                return
    raise NotApplicableError("output_dtype")


SCALES: dict[str, Damage] = {
    "input_scale x 2": multiply(".input_scale", 2),
    "weight_scale x 2": multiply(".weight_scale", 2),
    "weight_scale_2 x 2": multiply(".weight_scale_2", 2),
    "pre_quant_scale x 2": multiply(".pre_quant_scale", 2),
    "global_scale_f16 x 8": multiply("global_scale", 8),
    "global_scale_f16 0": multiply("global_scale", 0),
    "input_scale 0": multiply(".input_scale", 0),
    "two input_scales exchanged": exchange_scales(".input_scale"),
    "two weight_scales exchanged": exchange_scales(".weight_scale"),
    "input_scale of another projection": rewire(".input_scale"),
    "weight_scale of another projection": rewire(".weight_scale"),
    "pre_quant_scale of another projection": rewire(".pre_quant_scale"),
    "quantized with another scale than dequantized": rewire(
        ".input_scale", ops=("QuantizeLinear", "TRT_FP4DynamicQuantize")
    ),
    "bytes of a weight in another order": reorder_bytes,
    "inputs not quantized": skip_quantizer,
    "quantizer of another type": quantize_as_integers,
}


class Judge:
    """Judges copies of one export."""

    def __init__(self, export: Path, model: Path) -> None:
        self.llm, self.source = export / "llm", source.read_export_source(model)
        questions = export_gate.choose_source_questions(self.source)
        sequences = [list(s) for s in questions.sequences]
        self.answers = export_gate.ModelAnswers(*model_logits.compute_model_logits(model, sequences))

    def find_noticing(self, damage: Damage) -> dict[str, str]:
        """Return who noticed a damage → what it said."""
        with tempfile.TemporaryDirectory() as directory:
            llm = Path(shutil.copytree(self.llm, Path(directory) / "llm"))
            path = llm / "model.onnx"
            export = Export(path)
            damage(export)
            (llm / "model.onnx.data").unlink()
            onnx.save(
                export.model,
                str(path),
                save_as_external_data=True,
                all_tensors_to_one_file=True,
                location="model.onnx.data",
                size_threshold=64,
            )
            return {
                name: text
                for name, judge in (("checks", self._check), ("gate", self._gate))
                if (text := judge(llm)) is not None
            }

    def _check(self, llm: Path) -> str | None:
        return _said(lambda: checks.check_exported_model(llm, self.source))

    def _gate(self, llm: Path) -> str | None:
        return _said(
            lambda: export_gate.judge_export(
                llm, graph.read_graph(llm / "model.onnx"), self.source, self.answers
            )
        )


def _said(judge: Callable[[], Any]) -> str | None:
    try:
        judge()
    except EnginixError as error:
        return error.what
    return None


def damage_export(export: Path, model: Path) -> dict[str, dict[str, str] | None]:
    """Return damage → who noticed it; None where the export has nothing of that sort."""
    judge = Judge(export, model)
    assert judge.find_noticing(lambda e: None) == {}, "a healthy export does not pass"
    is_quantized = judge.source.quantization is not None
    found: dict[str, dict[str, str] | None] = {}
    for name, damage in {**GRAPH, **(SCALES if is_quantized else {})}.items():
        try:
            found[name] = judge.find_noticing(damage)
        except NotApplicableError:
            found[name] = None
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(damage_export(Path(sys.argv[1]), Path(sys.argv[2])), indent=1))
