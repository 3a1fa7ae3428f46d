"""Record the direct builder's graph of a model, damage it in one way at a time; tell what is not noticed.

python damage_direct.py MODEL      in the Python that has NVIDIA's wheel; prints JSON: damage → what it says
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import damage

from enginix.errors import EnginixError, GateError
from enginix.kinds.edgellm import source
from enginix.kinds.edgellm.execution import (
    direct_graph,
    export_gate,
    model_logits,
    network_recorder,
    recorded_layers,
)

# Those of damage.py that do not ask for names of the exporter's.
NAMES = (
    "epsilon of one norm 0.5", "Sigmoid is Tanh", "first residual adds attention twice",
    "last norm reads layer 0", "attention_scale x 10", "sliding_window_size 4", "enable_qk_norm flipped",
    "rms_norm_eps of the plugin 0.5", "qkv_scales 3 without FP8 cache", "num_q_heads wrong",
    "a plugin node without a definition", "caches of two layers exchanged", "epsilon of every norm x 2",
    "rms_norm_eps of the plugin x 2", "attention_scale x 1.0001",
)  # fmt: skip


def exchange_bindings(first: str, second: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        rows = config["checkpoint_weight_bindings"]
        a, b = (next(r for r in rows if name in r["engine_name"]) for name in (first, second))
        a["checkpoint_keys"], b["checkpoint_keys"] = b["checkpoint_keys"], a["checkpoint_keys"]

    return change


CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "two norms bound to each other": exchange_bindings("0.input_layernorm", "0.post_attention"),
    "gate and up bound to each other": exchange_bindings("0.mlp.gate", "0.mlp.up"),
    "o of two layers bound to each other": exchange_bindings("0.self_attn.o", "1.self_attn.o"),
    "table scaled": lambda c: c["checkpoint_weight_bindings"][-1].update(embedding_scale=2.0),
    "theta x 2": lambda c: c.update(rope_theta=c["rope_theta"] * 2),
    "an unknown layout": lambda c: c["checkpoint_weight_bindings"][0].update(assemble="other"),
    "a tensor that is not there": lambda c: c["checkpoint_weight_bindings"][0].update(checkpoint_keys=["x"]),
}


def judge(engine: Path, model: Any, answers: Any) -> str | None:
    try:
        graph = direct_graph.check_direct_engine(engine, model)
        export_gate.judge_direct(engine, graph, model, answers)
    except EnginixError as e:
        return e.what
    return None


def find_unrecorded_calls() -> list[str]:
    """What the recorder does not know is an error, never a graph without it."""
    network = network_recorder.Network(Path("unused"))
    x = network.add_input("x", recorded_layers.DataType.HALF, (-1, 4))
    layer = network.add_activation(x, "SIGMOID")
    layer.alpha = 1.0
    shuffle = network.add_slice(x, (0, 0), (1, 4), (1, 1))
    shuffle.set_input(1, x)
    plugin = SimpleNamespace(name="OtherPlugin", attributes={})
    calls: list[Callable[[], Any]] = [
        lambda: network.add_topk(x, "MAX", 1, 1), lambda: network.add_activation(x, "ELU"),
        lambda: network.add_plugin_v3([x], [], plugin),
        lambda: layer.emit(layer), lambda: shuffle.emit(shuffle),
        lambda: network.add_elementwise(x, network.add_shape(x).get_output(0), "SUM"),
    ]  # fmt: skip
    silent = []
    for number, call in enumerate(calls):
        try:
            call()
        except GateError:
            continue
        silent.append(str(number))
    return silent


def main(directory: Path) -> dict[str, str | None]:
    model = source.read_export_source(directory)
    sequences = [list(s) for s in export_gate.choose_source_questions(model).sequences]
    answers = export_gate.ModelAnswers(*model_logits.compute_model_logits(directory, sequences))
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as work:
        engine = Path(work) / "engine"
        words = [sys.executable, "-m", direct_graph.RECORDER_MODULE, directory, engine]
        subprocess.run(words, check=True)
        assert judge(engine, model, answers) is None, "a healthy graph does not pass"
        graph, config = ((engine / n).read_bytes() for n in (direct_graph.ENGINE_FILE, "config.json"))
        for name in NAMES:
            export = damage.Export(engine / direct_graph.ENGINE_FILE, inline=True)
            damage.GRAPH[name](export)
            (engine / direct_graph.ENGINE_FILE).write_bytes(export.model.SerializeToString())
            found[name] = judge(engine, model, answers)
            (engine / direct_graph.ENGINE_FILE).write_bytes(graph)
        for name, edit in CONFIGS.items():
            changed = json.loads(config)
            edit(changed)
            (engine / "config.json").write_text(json.dumps(changed))
            found[name] = judge(engine, model, answers)
            (engine / "config.json").write_bytes(config)
    return found


if __name__ == "__main__":
    assert find_unrecorded_calls() == []
    sys.stdout.write(json.dumps(main(Path(sys.argv[1])), indent=1))
