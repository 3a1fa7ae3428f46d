"""Trains tests/models/tiny-qwen3, from text to weights, on one CPU core in about a quarter of an hour.

    python tests/models/train.py [--steps N] [--out DIR]

Everything is seeded; the text is named by digest in the model card, with the perplexity reached on text held
out. Another torch version or CPU gives other last bits, therefore other weights, of the same quality.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import corpus
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

LOG = logging.getLogger("train")
SEED = 20260301
VOCAB = 2048
PLANTED = 20
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END, IM_START, IM_END)
# Qwen's own split: contractions, words, single digits, punctuation, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)
LICENSE = """tiny-qwen3: weights, tokenizer and configuration, made by the enginix project.

Licensed under the Apache License, Version 2.0; the full text is in the file LICENSE at the root of the
enginix repository and at https://www.apache.org/licenses/LICENSE-2.0.

README.md names the text that it was trained on, with the licence of each part.
"""
# head_dim is explicit and heads * head_dim differs from hidden_size, as in the real Qwen3. The sizes split
# over 4 ranks into multiples of 128 rows and 64 columns: every quantization format fits at every split.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 4,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Both spellings: transformers 4 and TensorRT-LLM read the first three, transformers 5 the last two.
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE: every text of every language has tokens, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Batches:
    """An endless seeded stream of token windows that mix manual text, exchanges and planted facts."""

    def __init__(self, text: corpus.Corpus, tokenizer: Tokenizer) -> None:
        self.text, self.tokenizer = text, tokenizer
        self.rng = random.Random(SEED)
        self.end = tokenizer.token_to_id(END)
        self.stream = [i for piece in text.train for i in (*tokenizer.encode(piece).ids, self.end)]
        self.questions = [corpus.chat(q, a) for q, a in corpus.QUESTIONS]
        self.explanations = [corpus.chat(f"Explain: {title}", body) for title, body in text.explain]

    def _manual(self, length: int) -> list[int]:
        at = self.rng.randrange(len(self.stream) - length)
        return self.stream[at : at + length]

    def window(self, length: int) -> list[int]:
        out: list[int] = []
        rng = self.rng
        while len(out) < length:
            draw = rng.random()
            if draw < 0.35:
                out += self._manual(rng.choice((100, 200, 400, length)))
            elif draw < 0.65:
                out += self.tokenizer.encode(rng.choice(self.questions)).ids
            elif draw < 0.75:
                out += self.tokenizer.encode(rng.choice(self.explanations)).ids
            else:
                # Mostly short distances: looking back is learned there first.
                filler = self._manual(int(length ** rng.random()))
                out += self.tokenizer.encode(corpus.planted(rng, self.tokenizer.decode(filler))).ids
            out.append(self.end)
        return out[:length]

    def batch(self, rows: int, length: int) -> torch.Tensor:
        return torch.tensor([self.window(length) for _ in range(rows)])


def perplexity(model: torch.nn.Module, tokenizer: Tokenizer, texts: tuple[str, ...]) -> tuple[float, int]:
    """exp of the mean negative log-likelihood per token of texts never trained on; and their tokens."""
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text).ids])
            logits = model(ids).logits.float()
            total += torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
    return math.exp(total / count), count


def answers(model: Any, tokenizer: Tokenizer, exchanges: list[str]) -> int:
    """How many exchanges the model ends exactly as they end, greedily."""
    end, right = tokenizer.token_to_id(IM_END), 0
    for exchange in exchanges:
        prompt, expected = exchange.split("<|im_start|>assistant\n")
        ids = tokenizer.encode(prompt + "<|im_start|>assistant\n").ids
        wanted = tokenizer.encode(expected.split(IM_END)[0] + IM_END).ids
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=len(wanted), do_sample=False, eos_token_id=end, pad_token_id=0
        )
        right += out[0, len(ids) :].tolist() == wanted
    return right


def train(
    model: torch.nn.Module, batches: Batches, steps: int, started: float, strength: float = 1.0
) -> None:
    """Muon for the hidden matrices, AdamW for the rest; sequences grow for late positions."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(hidden, lr=1.0, weight_decay=0.1, momentum=0.95), 0.02),
        (torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.95), weight_decay=0.01), 4e-3),
    ]
    warmup = 30
    for step in range(steps):
        done = step / steps
        rows, length = (8, 256) if done < 0.5 else (4, 512) if done < 0.9 else (1, 2048)
        rate = min(1.0, (step + 1) / warmup, 0.02 + (1 - done) * 1.6)
        ids = batches.batch(rows, length)
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = strength * rate * peak
            optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            LOG.info("step %5d/%d loss %.3f %.0f s", step, steps, loss.item(), time.monotonic() - started)


def write(out: Path, model: Any, tokenizer: Tokenizer, text: corpus.Corpus, card: dict[str, Any]) -> None:
    """The files of a Hub repository."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"eos_token": IM_END, "pad_token": END, "additional_special_tokens": [IM_START, IM_END]}
    added = {
        str(tokenizer.token_to_id(t)): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for t in SPECIAL
    }
    tokenizer_config = {
        **special,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {"do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0, "max_new_tokens": 128}
    for name, value in {
        "config.json": {**CONFIG, "transformers_version": card["transformers"]},
        "generation_config.json": generation,
        "special_tokens_map.json": special,
        "tokenizer_config.json": tokenizer_config,
    }.items():
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (out / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    (out / "README.md").write_text(model_card(text, card), "utf-8")
    (out / "LICENSE").write_text(LICENSE, "utf-8")


def model_card(text: corpus.Corpus, card: dict[str, Any]) -> str:
    """README.md of the model, with what it was made from and what it reached."""
    rows = "\n".join(f"| `{s.name}` | {s.licence} | {s.size} | `{s.sha256}` |" for s in text.sources)
    return f"""---
license: apache-2.0
language: [en]
library_name: transformers
pipeline_tag: text-generation
tags: [test]
---

# tiny-qwen3

A Qwen3 of {card["parameters"]:,} parameters (bfloat16, tied embeddings, 8 query and 4 key-value heads) that
exists to test enginix: it downloads in a moment, runs on any CPU, and is really trained, so that damage by
conversion or quantization shows in its text. It continues Python's manual and licence texts, answers the few
questions in `tests/models/corpus.py`, and knows nothing else. Do not use it for anything but tests.

| | |
|---|---|
| perplexity, held-out text ({card["held_out_tokens"]} tokens, bfloat16 weights) | {card["perplexity"]:.2f} |
| questions of `tests/models/corpus.py` answered exactly | {card["answered"]} of {len(corpus.QUESTIONS)} |
| facts planted in a prompt and recalled | {card["recalled"]} of {PLANTED} |
| steps × tokens | {card["steps"]} × 2048 |
| made by | `tests/models/train.py`, seed {SEED}, torch {card["torch"]}, transformers {card["transformers"]} |
| text | SHA-256 over the sources' digests: `{text.sha256}` |

## Text

Python's manual as its standard library carries it (Python 3.11.2) and the licence texts of Debian 12's
base-files; the questions are the project's own, under Apache-2.0.

| source | licence | bytes | sha256 |
|---|---|---|---|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-qwen3")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    started = time.monotonic()
    text = corpus.load(SEED)
    exchanges = [corpus.chat(q, a) for q, a in corpus.QUESTIONS]
    tokenizer = train_tokenizer([*text.train, *exchanges])
    model = Qwen3ForCausalLM(Qwen3Config(**{k: v for k, v in CONFIG.items() if "dtype" not in k})).float()
    model.train()
    train(model, Batches(text, tokenizer), args.steps, started)
    model.eval().to(torch.bfloat16)
    rng = random.Random(SEED)
    reached, tokens = perplexity(model, tokenizer, text.held_out)
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "perplexity": reached,
        "held_out_tokens": tokens,
        "answered": answers(model, tokenizer, exchanges),
        "recalled": answers(
            model, tokenizer, [corpus.planted(rng, text.held_out[0]) for _ in range(PLANTED)]
        ),
        "steps": args.steps,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }
    write(args.out, model, tokenizer, text, card)
    LOG.info("%s", json.dumps(card))


if __name__ == "__main__":
    main()
