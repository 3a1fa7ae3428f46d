"""ModelOpt's simulation of a quantized model: its logits in float32, and the checkpoint that it exports.

python simulated.py MODEL OUT FORMAT…        writes OUT/FORMAT/logits.npy and OUT/FORMAT/checkpoint of each
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from quantized import CONFIGS, COPIED

from enginix.kinds.edgellm.execution import export_gate


def simulate(model: Path, name: str, out: Path) -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.randint(3, network.config.vocab_size, (4, 32))
    mtq.quantize(network, getattr(mtq, CONFIGS[name]), lambda n: n(tokens))
    sequences = export_gate.choose_questions(2048, [], 2048).sequences
    logits = np.zeros((len(sequences), max(map(len, sequences)), network.config.vocab_size), np.float32)
    for row, sequence in zip(logits, sequences, strict=True):
        row[: len(sequence)] = network(torch.tensor([sequence])).logits[0].numpy()
    out.mkdir(parents=True)
    np.save(out / "logits.npy", logits)
    export_hf_checkpoint(network, export_dir=out / "checkpoint")
    for file in COPIED:
        if (model / file).is_file():
            (out / "checkpoint" / file).write_bytes((model / file).read_bytes())


if __name__ == "__main__":
    for name in sys.argv[3:]:
        simulate(Path(sys.argv[1]), name, Path(sys.argv[2]) / name)
