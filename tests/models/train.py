"""Trains tests/models/tiny-qwen3, from text to weights, on one GPU in a few minutes.

    python tests/models/train.py --dump corpus.json          # where the text is: Debian 12
    python tests/models/train.py --text corpus.json --device cuda --workers 8 [--steps N] [--out DIR]

Everything is seeded; the text is named by digest in the model card, with the perplexity reached on text held
out. Another torch version or device gives other last bits, therefore other weights, of the same quality.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corpus
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

LOG = logging.getLogger("train")
SEED = 20260301
STEPS = 3000
VOCAB = 2048
PLANTED = 20
IGNORED = -100  # torch's cross_entropy leaves such targets out
# Up to which share of the steps; rows; tokens a row; shares of the draws: manual, questions, explanations,
# repetitions, planted facts.
STAGES = (
    (0.4, 128, 256, (0.03, 0.04, 0.02, 0.6, 0.31)),
    (0.65, 64, 512, (0.07, 0.05, 0.03, 0.25, 0.6)),
    (1.0, 16, 2048, (0.1, 0.08, 0.04, 0.15, 0.63)),
)
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


class Batches(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches by number, each from a seed of its own: token windows, and targets in which what cannot be
    predicted, or is there only to be looked past, is left out.

    Windows mix manual text, exchanges, repetitions and planted facts. Repetitions of random tokens come first
    and most: copying what followed the same tokens earlier is what recalling a fact is made of, and a signal
    at every token teaches it many times faster than the four digits of an answer.
    """

    def __init__(self, text: corpus.Corpus, tokenizer: Tokenizer, steps: int) -> None:
        self.steps, self.tokenizer = steps, tokenizer
        self.end = tokenizer.token_to_id(END)
        self.stream = [i for piece in text.train for i in (*tokenizer.encode(piece).ids, self.end)]
        self.questions = [tokenizer.encode(corpus.chat(q, a)).ids for q, a in corpus.QUESTIONS]
        explained = [corpus.chat(f"Explain: {title}", body) for title, body in text.explain]
        self.explanations = [tokenizer.encode(exchange).ids for exchange in explained]
        self.breaks = tokenizer.encode("\n\n").ids

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and targets, int64 [rows, length] both."""
        rng = random.Random(SEED * 1_000_003 + step)
        done = step / self.steps
        _, rows, length, shares = next(stage for stage in STAGES if done < stage[0])
        windows = [self._window(rng, length, shares) for _ in range(rows)]
        ids, targets = (torch.tensor([w[part] for w in windows]) for part in (0, 1))
        return ids, targets

    def _manual(self, rng: random.Random, length: int) -> list[int]:
        at = rng.randrange(len(self.stream) - length)
        return self.stream[at : at + length]

    def _window(
        self, rng: random.Random, length: int, shares: Sequence[float]
    ) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        targets: list[int] = []
        while len(ids) < length:
            left = length - len(ids)
            kind = rng.choices(("manual", "question", "explanation", "repeated", "planted"), shares)[0]
            if kind == "repeated" and left > 64:
                more, wanted = self._repeated(rng, left)
            elif kind == "planted" and left > 128:
                more, wanted = self._planted(rng, left)
            else:
                if kind == "manual":
                    more = self._manual(rng, min(left, rng.choice((100, 200, 400))))
                else:
                    more = rng.choice(self.explanations if kind == "explanation" else self.questions)
                more = wanted = [*more, self.end]
            ids += more
            targets += wanted
        return ids[:length], targets[:length]

    def _between(self, rng: random.Random, most: int) -> list[int]:
        """Text to look past, of any order of magnitude up to ``most`` tokens, more often of the larger."""
        return self._manual(rng, int(most ** rng.random() ** 0.5)) if most > 1 else []

    def _repeated(self, rng: random.Random, room: int) -> tuple[list[int], list[int]]:
        few = rng.sample(range(len(SPECIAL), VOCAB), rng.choice((16, 64, 256)))
        tokens = rng.choices(few, k=rng.randrange(8, 1 + max(8, min(64, room // 4))))
        between = self._between(rng, room - 2 * len(tokens)) if rng.random() < 0.7 else []
        return [*tokens, *between, *tokens], [IGNORED] * (len(tokens) + len(between)) + tokens

    def _planted(self, rng: random.Random, room: int) -> tuple[list[int], list[int]]:
        """Facts at the start or anywhere in a text, then asked for, one exchange each."""
        encode = self.tokenizer.encode
        things = rng.sample(corpus.THINGS, rng.randrange(1, 1 + min(6, room // 60)))
        facts = {thing: corpus.fact(thing, f"{rng.randrange(10000):04d}") for thing in things}
        asked = [encode(corpus.chat(corpus.question(thing), facts[thing])).ids for thing in things]
        rng.shuffle(asked)
        told = encode("<|im_start|>user\n").ids
        start = len(told)
        filler = self._between(rng, room - 30 * len(things) - 20)
        if rng.random() < 0.5:
            told = told + encode(" ".join(facts.values())).ids + self.breaks + filler
        else:
            cuts = sorted(rng.randrange(len(filler) + 1) for _ in things)
            for at, end, one in zip([0, *cuts], [*cuts, len(filler)], [*facts.values(), ""], strict=True):
                told += filler[at:end] + (self.breaks + encode(one).ids + self.breaks if one else [])
        # The first exchange goes on where the text ends.
        told += self.breaks + asked[0][start:]
        silent = len(told) - len(asked[0][start:])
        answers = [i for exchange in asked[1:] for i in exchange]
        ids = [*told, *answers, self.end]
        return ids, [IGNORED] * silent + ids[silent:]


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


def train(model: Any, batches: Batches, device: str, workers: int, started: float) -> None:
    """Muon for the hidden matrices, AdamW for the rest; sequences grow for late positions."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(hidden, lr=1.0, weight_decay=0.1, momentum=0.95), 0.02),
        (torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.95), weight_decay=0.01), 3e-3),
    ]
    warmup, steps = 100, len(batches)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers)
    for step, (ids, targets) in enumerate(loader):
        rate = min(1.0, (step + 1) / warmup, 0.02 + (1 - step / steps) * 1.6)
        ids, targets = ids.to(device), targets.to(device)
        logits = model(ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=IGNORED
        )
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * peak
            optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            LOG.info("step %5d/%d loss %.3f %.0f s", step, steps, loss.item(), time.monotonic() - started)
        if step % 1000 == 999:
            LOG.info("          %s", recall(model, batches, device))


@torch.no_grad()
def recall(model: Any, batches: Batches, device: str) -> dict[str, str]:
    """Digits of planted facts found, and digits asked, by distance; told the digits before."""
    rng, found = random.Random(1), {}
    for distance in (30, 120, 480, 1900):
        right = count = 0
        for _ in range(40):
            filler = batches.tokenizer.decode(batches._manual(rng, distance))
            ids = batches.tokenizer.encode(corpus.planted(rng, filler)).ids[-2048:]
            best = model(torch.tensor([ids], device=device)).logits[0].argmax(-1).tolist()
            last = len(ids) - 3  # before the full stop, the end and its line
            right += sum(best[i - 1] == ids[i] for i in range(last - 4, last))
            count += 4
        found[str(distance)] = f"{right}/{count}"
    return found


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
| steps × tokens | {card["steps"]} × 32768 |
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
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-qwen3")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--text", type=Path, help="read the text from what --dump wrote")
    parser.add_argument("--dump", type=Path, help="write the text, and train nothing")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = corpus.parse(args.text.read_text("utf-8")) if args.text else corpus.load(SEED)
    if args.dump:
        args.dump.write_text(corpus.dump(text), "utf-8")
        return
    import transformers

    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    if args.device == "cpu":
        torch.set_num_threads(1)
    started = time.monotonic()
    exchanges = [corpus.chat(q, a) for q, a in corpus.QUESTIONS]
    tokenizer = train_tokenizer([*text.train, *exchanges])
    model = Qwen3ForCausalLM(Qwen3Config(**{k: v for k, v in CONFIG.items() if "dtype" not in k})).float()
    model.to(args.device).train()
    train(model, Batches(text, tokenizer, args.steps), args.device, args.workers, started)
    model.cpu()
    model.eval().to(torch.bfloat16)
    rng = random.Random(SEED)
    reached, tokens = perplexity(model, tokenizer, text.held_out)
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "perplexity": reached,
        "held_out_tokens": tokens,
        "answered": answers(model, tokenizer, exchanges),
        "recalled": answers(
            model, tokenizer, [corpus.planted(rng, "".join(text.held_out[:2])) for _ in range(PLANTED)]
        ),
        "steps": args.steps,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }
    write(args.out, model, tokenizer, text, card)
    LOG.info("%s", json.dumps(card))


if __name__ == "__main__":
    main()
