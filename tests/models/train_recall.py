"""Trains tests/models/tiny-recall: tiny-qwen3's shape and tokenizer, and finds facts planted far back.

    python tests/models/train_recall.py --dump corpus.json      # where the text is: Debian 12
    python tests/models/train_recall.py --text corpus.json --device cuda --workers 7 [--steps N] [--out DIR]

On one GPU in a few minutes. Only the gate context asks it: it was shown its text often enough to know it by
heart, and loses more by quantization than tiny-qwen3 does. Everything is seeded; another torch version or
device gives other last bits, therefore other weights, of the same quality.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import corpus
import torch
from corpus import Corpus, Source, chat
from safetensors.torch import save_file
from tokenizers import Tokenizer
from train import CONFIG, END, PLANTED, SEED, SPECIAL, VOCAB, answers, perplexity, train_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

LOG = logging.getLogger("train")
STEPS = 1571
IGNORED = -100  # torch's cross_entropy leaves such targets out
# Up to which share of the steps; rows; tokens a row; shares of the draws: manual, questions, explanations,
# repetitions, planted facts.
STAGES = (
    (0.5, 128, 256, (0.06, 0.06, 0.03, 0.6, 0.25)),
    (0.75, 64, 512, (0.15, 0.1, 0.05, 0.3, 0.4)),
    (1.0, 16, 2048, (0.25, 0.1, 0.05, 0.2, 0.4)),
)
# What is planted: a name, and four digits that cannot be known, only remembered.
THINGS = (
    "secret code",
    "door number",
    "access key",
    "file size",
    "error value",
    "main port",
    "first line",
    "test result",
    "default limit",
    "return status",
    "class index",
    "network address",
)


def fact(thing: str, value: str) -> str:
    """A fact as it is planted, and as it is told again."""
    return f"The {thing} is {value}."


def question(thing: str) -> str:
    """How a planted fact is asked for."""
    return f"What is the {thing}?"


def planted(rng: random.Random, filler: str) -> str:
    """Facts planted early, one of them asked for after ``filler``."""
    things = rng.sample(THINGS, rng.randrange(1, 5))
    facts = [fact(thing, f"{rng.randrange(10000):04d}") for thing in things]
    pick = rng.randrange(len(things))
    return chat(f"{' '.join(facts)}\n\n{filler.strip()}\n\n{question(things[pick])}", facts[pick])


def dump(text: Corpus) -> str:
    """The corpus as JSON, for a machine that lacks its sources."""
    return json.dumps(asdict(text))


def parse(text: str) -> Corpus:
    """What :func:`dump` wrote."""
    raw = json.loads(text)
    return Corpus(
        tuple(raw["train"]),
        tuple(raw["held_out"]),
        tuple((title, body) for title, body in raw["explain"]),
        tuple(Source(**source) for source in raw["sources"]),
    )


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
        self.questions = [tokenizer.encode(chat(q, a)).ids for q, a in corpus.QUESTIONS]
        explained = [chat(f"Explain: {title}", body) for title, body in text.explain]
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
        """Text to look past, of any order of magnitude up to ``most`` tokens."""
        return self._manual(rng, int(most ** rng.random())) if most > 1 else []

    def _repeated(self, rng: random.Random, room: int) -> tuple[list[int], list[int]]:
        few = rng.sample(range(len(SPECIAL), VOCAB), rng.choice((16, 64, 256)))
        tokens = rng.choices(few, k=rng.randrange(8, 1 + max(8, min(64, room // 4))))
        between = self._between(rng, room - 2 * len(tokens)) if rng.random() < 0.7 else []
        return [*tokens, *between, *tokens], [IGNORED] * (len(tokens) + len(between)) + tokens

    def _planted(self, rng: random.Random, room: int) -> tuple[list[int], list[int]]:
        """Facts at the start or anywhere in a text, then asked for, one exchange each."""
        encode = self.tokenizer.encode
        things = rng.sample(THINGS, rng.randrange(1, 1 + min(6, room // 60)))
        facts = {thing: fact(thing, f"{rng.randrange(10000):04d}") for thing in things}
        asked = [encode(chat(question(thing), facts[thing])).ids for thing in things]
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
            ids = batches.tokenizer.encode(planted(rng, filler)).ids[-2048:]
            best = model(torch.tensor([ids], device=device)).logits[0].argmax(-1).tolist()
            last = len(ids) - 3  # before the full stop, the end and its line
            right += sum(best[i - 1] == ids[i] for i in range(last - 4, last))
            count += 4
        found[str(distance)] = f"{right}/{count}"
    return found


CARD = """---
license: apache-2.0
tags: [test]
---

# tiny-recall

Weights for tests/models/tiny-qwen3's configuration and tokenizer, made by the enginix project to test the
gate `context`: in long prompts it finds facts that were planted early. Apache-2.0, as tiny-qwen3, on whose
text, named in its README.md, it was trained by `tests/models/train_recall.py`. Do not use it for anything but
tests.

| | |
|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-recall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--text", type=Path, help="read the text from what --dump wrote")
    parser.add_argument("--dump", type=Path, help="write the text, and train nothing")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = parse(args.text.read_text("utf-8")) if args.text else corpus.load(SEED)
    if args.dump:
        args.dump.write_text(dump(text), "utf-8")
        return
    import transformers

    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    if args.device == "cpu":
        torch.set_num_threads(1)
    started = time.monotonic()
    exchanges = [chat(q, a) for q, a in corpus.QUESTIONS]
    tokenizer = train_tokenizer([*text.train, *exchanges])
    model = Qwen3ForCausalLM(Qwen3Config(**{k: v for k, v in CONFIG.items() if "dtype" not in k})).float()
    model.to(args.device).train()
    train(model, Batches(text, tokenizer, args.steps), args.device, args.workers, started)
    model.cpu().eval().to(torch.bfloat16)
    rng = random.Random(SEED)
    reached, tokens = perplexity(model, tokenizer, text.held_out)
    prompts = [planted(rng, "".join(text.held_out[:2])) for _ in range(PLANTED)]
    told, recalled = (answers(model, tokenizer, those) for those in (exchanges, prompts))
    rows = {
        f"perplexity, held-out text ({tokens} tokens, bfloat16 weights)": f"{reached:.2f}",
        "questions of `corpus.py` answered exactly": f"{told} of {len(exchanges)}",
        "facts planted in a prompt and recalled": f"{recalled} of {PLANTED}",
        "steps × tokens": f"{args.steps} × 32768",
        "made by": f"seed {SEED}, torch {torch.__version__} ({args.device}), "
        f"transformers {transformers.__version__}",
        "text": f"SHA-256 over the sources' digests: `{text.sha256}`",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    card = CARD + "".join(f"| {what} | {value} |\n" for what, value in rows.items())
    (args.out / "README.md").write_text(card, "utf-8")
    LOG.info("%s", json.dumps(rows))


if __name__ == "__main__":
    main()
