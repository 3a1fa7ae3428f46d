"""Quantized variants of the tiny model, written by ModelOpt: fixtures of the export's tests.

python quantized.py MODEL OUT FORMAT…        writes OUT/FORMAT of each: fp8, nvfp4, int4_awq, int8_sq
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

# ModelOpt's configuration of each format. KV cache FP8 comes with fp8-kv only.
CONFIGS = {
    "fp8": "FP8_DEFAULT_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
}
TEXT = "one two three four five six seven eight nine ten"
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def quantize(model: Path, name: str, out: Path) -> None:
    """Writes a unified Hugging Face checkpoint of ``model`` in format ``name`` to ``out``."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    tokens = torch.randint(3, network.config.vocab_size, (4, 32))

    def calibrate(quantized: torch.nn.Module) -> None:
        with torch.no_grad():
            quantized(tokens)

    mtq.quantize(network, getattr(mtq, CONFIGS[name]), calibrate)
    export_hf_checkpoint(network, export_dir=out)
    for file in COPIED:
        if (model / file).is_file():
            shutil.copyfile(model / file, out / file)


if __name__ == "__main__":
    for name in sys.argv[3:]:
        quantize(Path(sys.argv[1]), name, Path(sys.argv[2]) / name)
