"""Trains tests/models/tiny-llama: another architecture than tiny-qwen3, on its text and with its tokenizer.

    python tests/models/train_llama.py [--steps N] [--out DIR]

The bounds of the gates are derived from it beside the other two models. It begins with tiny-qwen3's matrices,
which lack their norms of queries and keys there, and is trained until it does without. Only weights and
configuration are written; the tokenizer's files are tiny-qwen3's. Minutes on one CPU core; seeded.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import corpus
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from train import LOG, SEED, VOCAB, Batches, answers, perplexity, train
from transformers import LlamaConfig, LlamaForCausalLM

# No norms of queries and keys, and a head that is not the embedding.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
CARD = """---
license: apache-2.0
tags: [test]
---

# tiny-llama

A Llama of {parameters:,} parameters for tiny-qwen3's tokenizer, made by the enginix project: the bounds of
the gates are derived from it, too. Apache-2.0, as tiny-qwen3, on whose text, named in its README.md, it was
trained by `tests/models/train_llama.py`. Do not use it for anything but tests.

| | |
|---|---|
| perplexity, held-out text ({tokens} tokens, bfloat16 weights) | {reached:.2f} |
| questions of `corpus.py` answered exactly | {told} of {questions} |
| steps × tokens | {steps} × 2048 |
| made by | seed {seed}, torch {torch}, transformers {transformers} |
| text | SHA-256 over the sources' digests: `{text}` |
"""


def begin_model(parent: Path) -> LlamaForCausalLM:
    """Return a Llama with a Qwen3's matrices; gains of its norms of queries and keys go into their rows."""
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if "dtype" not in k})).float()
    tensors = {name: tensor.float() for name, tensor in load_file(parent / "model.safetensors").items()}
    size = CONFIG["head_dim"]
    for name in [name for name in tensors if name.endswith(("q_norm.weight", "k_norm.weight"))]:
        gains = tensors.pop(name)
        matrix = name.replace("_norm.", "_proj.")
        rows = tensors[matrix]
        # A norm divides by what a head's queries usually are; its matrix then makes them of that size.
        rows = rows.view(-1, size, rows.shape[1])
        usual = rows.pow(2).sum((1, 2), keepdim=True).div(size).sqrt()
        tensors[matrix] = (rows / usual * gains[None, :, None]).view(-1, rows.shape[2])
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].clone())
    model.load_state_dict(tensors)
    return model.train()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=130)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-llama")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    started = time.monotonic()
    text = corpus.load(SEED)
    exchanges = [corpus.chat(q, a) for q, a in corpus.QUESTIONS]
    tokenizer = Tokenizer.from_file(str(Path(__file__).parent / "tiny-qwen3/tokenizer.json"))
    model = begin_model(Path(__file__).parent / "tiny-qwen3")
    train(model, Batches(text, tokenizer), args.steps, started, strength=0.25)
    model.eval().to(torch.bfloat16)
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "model.safetensors").chmod(0o644)
    config = {**CONFIG, "transformers_version": transformers.__version__}
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    reached, tokens = perplexity(model, tokenizer, text.held_out)
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        tokens=tokens,
        reached=reached,
        told=answers(model, tokenizer, exchanges),
        questions=len(exchanges),
        steps=args.steps,
        seed=SEED,
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        text=text.sha256,
    )
    (args.out / "README.md").write_text(card, "utf-8")
    LOG.info("%s", card)


if __name__ == "__main__":
    main()
