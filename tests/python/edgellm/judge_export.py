"""Runs the gate ``export`` alone: python judge_export.py EXPORT MODEL. In the Python that has onnx."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from enginix.errors import EnginixError
from enginix.kinds.edgellm import graph
from enginix.kinds.edgellm.execution import export_gate, model_logits
from enginix.model import open_weights
from enginix.model.config import parse_config

if __name__ == "__main__":
    llm, model = Path(sys.argv[1]) / "llm", Path(sys.argv[2])
    config = json.loads((model / "config.json").read_text())
    # What is refused before the exporter is judged here, so the model's own reader is passed by.
    source = SimpleNamespace(
        directory=model,
        model=parse_config({**config, "hidden_act": "silu"}, model),  # the gate reads sizes and windows
        weights=open_weights(model),
        quantization=None,
        layers=config["num_hidden_layers"],
    )
    try:
        questions = export_gate.choose_source_questions(source)
        logits = model_logits.compute_model_logits(model, [list(s) for s in questions.sequences])
        found = export_gate.judge_export(
            llm, graph.read_graph(llm / "model.onnx"), source, export_gate.ModelAnswers(*logits)
        )
    except EnginixError as e:
        sys.stderr.write(f"error: {e}\n")
        raise SystemExit(e.exit_code) from None
    sys.stdout.write(json.dumps(found))
