"""Trains tests/models/tiny-recall: tiny-qwen3's shape and tokenizer, and finds facts planted far back.

    python tests/models/train_recall.py --dump corpus.json      # where the text is: Debian 12
    python tests/models/train_recall.py --text corpus.json --device cuda --workers 7 [--steps N] [--out DIR]

On one GPU in a few minutes. Only the gate context asks it. Texts are made and tokenized whole, as the gate
does, of other paragraphs with other numbers; and most steps imitate a number format, since what a small model
recalls hangs on few attention heads. Everything is seeded; another torch version or device gives other last
bits, therefore other weights, of the same quality.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import corpus
import torch
from corpus import Corpus, Source, chat
from fake_quantization import FORMATS, PLAIN, Imitation
from safetensors.torch import save_file
from tokenizers import Tokenizer
from train import CONFIG, END, SEED, SPECIAL, VOCAB, answers, perplexity
from transformers import Qwen3Config, Qwen3ForCausalLM

LOG = logging.getLogger("train")
STEPS = 2400
ROOT = Path(__file__).parents[2]
IGNORED = -100  # torch's cross_entropy leaves such targets out
# Up to which share of the steps; rows; tokens a row; shares of the draws: manual, questions, explanations,
# repetitions, planted facts.
STAGES = (
    (0.4, 128, 256, (0.06, 0.04, 0.02, 0.53, 0.35)),
    (0.6, 64, 512, (0.1, 0.04, 0.02, 0.29, 0.55)),
    (1.0, 16, 2048, (0.1, 0.03, 0.02, 0.15, 0.7)),
)
# Number formats are imitated from one share of the steps on, and as often as they will be from another on.
IMITATED_FROM, IMITATED_FULLY, IMITATED = 0.3, 0.5, 0.85
CALIBRATED = 25  # steps
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


def held_out() -> tuple[frozenset[str], frozenset[str]]:
    """The numbers that the gate plants, and the paragraphs that it plants them in: neither is used."""
    facts, texts = (
        json.loads((ROOT / "python/enginix/data" / name).read_text("utf-8"))
        for name in ("gate_facts.json", "gate_text.json")
    )
    paragraphs = (p.strip() for row in texts["text"] for p in row["text"].split("\n\n"))
    return frozenset(row["answer"] for row in facts["facts"]), frozenset(paragraphs)


def question(thing: str) -> str:
    """How a planted fact is asked for."""
    return f"What is the {thing}?"


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

    def __init__(self, text: corpus.Corpus, tokenizer: Tokenizer, steps: int, seed: int = SEED) -> None:
        self.steps, self.tokenizer, self.seed = steps, tokenizer, seed
        self.end = tokenizer.token_to_id(END)
        self.stream = [i for piece in text.train for i in (*tokenizer.encode(piece).ids, self.end)]
        self.questions = [tokenizer.encode(chat(q, a)).ids for q, a in corpus.QUESTIONS]
        explained = [chat(f"Explain: {title}", body) for title, body in text.explain]
        self.explanations = [tokenizer.encode(exchange).ids for exchange in explained]
        numbers, texts = held_out()
        self.values = [f"{n:04d}" for n in range(10000) if f"{n:04d}" not in numbers]
        # As the gate takes its texts apart; a paragraph, and its tokens with the line break after it.
        self.paragraphs = [
            (p, len(tokenizer.encode(f"{p}\n\n").ids))
            for piece in text.train
            for p in piece.split("\n\n")
            if p.strip() and p.strip() not in texts
        ]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and targets, int64 [rows, length] both."""
        rng = random.Random(self.seed * 1_000_003 + step)
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

    def calibration(self, rng: random.Random) -> torch.Tensor:
        """Text alone, [12, 256], as ModelOpt would be shown it."""
        return torch.tensor([self._manual(rng, 256) for _ in range(12)])

    def _repeated(self, rng: random.Random, room: int) -> tuple[list[int], list[int]]:
        few = rng.sample(range(len(SPECIAL), VOCAB), rng.choice((16, 64, 256)))
        tokens = rng.choices(few, k=rng.randrange(8, 1 + max(8, min(64, room // 4))))
        between = self._between(rng, room - 2 * len(tokens)) if rng.random() < 0.7 else []
        return [*tokens, *between, *tokens], [IGNORED] * (len(tokens) + len(between)) + tokens

    def filler(self, rng: random.Random, room: int) -> list[str]:
        """Paragraphs of at most ``room`` tokens: some that follow one another, over and over now and then."""
        at, span = rng.randrange(len(self.paragraphs)), len(self.paragraphs)
        if rng.random() < 0.2:
            span = rng.randrange(1, 40)
        out: list[str] = []
        while True:
            paragraph, size = self.paragraphs[(at + len(out) % span) % len(self.paragraphs)]
            room -= size
            if room < 0:
                return out
            out.append(paragraph)

    def asking(self, rng: random.Random, room: int, most: int) -> tuple[str, list[tuple[str, str]]]:
        """A text of about ``room`` tokens with facts planted anywhere in it; (question, answer) of each."""
        things = rng.sample(THINGS, rng.randrange(1, 1 + most))
        facts = [fact(thing, rng.choice(self.values)) for thing in things]
        parts = self.filler(rng, room)
        for planted in facts:
            parts.insert(0 if rng.random() < 0.15 else rng.randrange(len(parts) + 1), planted)
        asked = [(question(thing), planted) for thing, planted in zip(things, facts, strict=True)]
        rng.shuffle(asked)
        return "\n\n".join(parts), asked

    def _planted(self, rng: random.Random, room: int) -> tuple[list[int], list[int]]:
        """Facts anywhere in a text, asked for at its end, then one exchange for each other."""
        encode = self.tokenizer.encode
        # Few or many tokens of text; where there is room for thousands, mostly many.
        size = room - 150 if rng.random() < 0.4 else int(max(1, room - 150) ** rng.random())
        text, asked = self.asking(rng, size, min(6, room // 40))
        ids: list[int] = []
        targets: list[int] = []
        for number, (what, answer) in enumerate(asked):
            before = f"{text}\n\n{what}" if number == 0 else what
            # Split where a special token splits: nothing is one token that is two for the gate.
            told = encode(f"<|im_start|>user\n{before}<|im_end|>\n<|im_start|>assistant\n").ids
            said = encode(f"{answer}<|im_end|>\n").ids
            ids += told + said
            targets += [IGNORED] * len(told) + said
        return [*ids, self.end], [*targets, self.end]


def train(model: Any, batches: Batches, nvfp4: float, device: str, workers: int, started: float) -> Imitation:
    """Muon for the hidden matrices, AdamW for the rest; sequences grow for late positions.

    Args:
        nvfp4: share of the imitating steps that imitate the coarsest format.
    """
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(hidden, lr=1.0, weight_decay=0.1, momentum=0.95), 0.02),
        (torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.95), weight_decay=0.01), 3e-3),
    ]
    warmup, steps = 100, len(batches)
    imitation, rng = Imitation(model), random.Random(batches.seed)
    shares = [nvfp4 if name == "nvfp4" else (1 - nvfp4) / (len(FORMATS) - 1) for name in FORMATS]
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers)
    for step, (ids, targets) in enumerate(loader):
        done = step / steps
        rate = min(1.0, (step + 1) / warmup, 0.02 + (1 - done) * 1.6)
        often = IMITATED * min(1.0, (done - IMITATED_FROM) / (IMITATED_FULLY - IMITATED_FROM))
        if done >= IMITATED_FROM and (step % CALIBRATED == 0 or not imitation.largest):
            imitation.calibrate(batches.calibration(rng).to(device))
        imitation.format = rng.choices(FORMATS, shares)[0] if rng.random() < often else PLAIN
        ids, targets = ids.to(device), targets.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
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
        if step % 500 == 499:
            LOG.info("          %s", recall(model, imitation, batches, device))
    return imitation


@torch.no_grad()
def says(model: Any, told: list[int], said: list[int], device: str) -> bool:
    """Whether the model, told ``told``, greedily says ``said``."""
    logits = model(torch.tensor([told + said], device=device), use_cache=False).logits[0]
    return bool(logits.argmax(-1)[len(told) - 1 : -1].tolist() == said)


def recall(model: Any, imitation: Imitation, batches: Batches, device: str, of: int = 20) -> dict[str, str]:
    """Planted facts found among other training text, by tokens of it, plain and in the coarsest format."""
    found, encode = {}, batches.tokenizer.encode
    for name in (PLAIN, "nvfp4") if imitation.largest else (PLAIN,):
        imitation.format, rng = name, random.Random(1)
        for room in (120, 480, 1800):
            right = 0
            for _ in range(of):
                text, asked = batches.asking(rng, room, 3)
                what, answer = asked[0]
                told = encode(f"<|im_start|>user\n{text}\n\n{what}<|im_end|>\n<|im_start|>assistant\n").ids
                right += says(model, told, encode(answer).ids, device)
            found[f"{name} {room}"] = f"{right}/{of}"
    return found


def gate(model: Any, imitation: Imitation, batches: Batches, device: str) -> dict[str, int]:
    """Facts of the gate context that the model finds, plain and in each format as it is imitated."""
    sys.path.insert(0, str(ROOT / "python"))
    from enginix.evaluation.reference_answers import hf, material
    from enginix.tables import load_table

    asked = material.load_material(
        hf.TransformersTokenizer(Path(__file__).parent / "tiny-qwen3"), VOCAB, 2048
    ).recalls
    facts = {row["answer"]: row["fact"] for row in load_table("gate_facts")["facts"]}
    imitation.calibrate(batches.calibration(random.Random(2)).to(device))
    found = {}
    for name in (PLAIN, *FORMATS):
        imitation.format = name
        told = [(list(q.tokens), batches.tokenizer.encode(facts[q.answer]).ids) for q in asked]
        found[name] = sum(says(model, *exchange, device) for exchange in told)
    imitation.format = PLAIN
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
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--nvfp4", type=float, default=0.4, help="share of it among the imitated formats")
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

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    if args.device == "cpu":
        torch.set_num_threads(1)
    started = time.monotonic()
    tokenizer = Tokenizer.from_file(str(Path(__file__).parent / "tiny-qwen3/tokenizer.json"))
    model = Qwen3ForCausalLM(Qwen3Config(**{k: v for k, v in CONFIG.items() if "dtype" not in k})).float()
    model.to(args.device).train()
    batches = Batches(text, tokenizer, args.steps, args.seed)
    imitation = train(model, batches, args.nvfp4, args.device, args.workers, started)
    model.eval().to(torch.bfloat16)
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.cpu().contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "model.safetensors").chmod(0o644)
    model.float()
    found = gate(model, imitation, batches, args.device)
    model.cpu()
    exchanges = [chat(q, a) for q, a in corpus.QUESTIONS]
    told = answers(model, tokenizer, exchanges)
    reached, tokens = perplexity(model, tokenizer, text.held_out)
    rows = {
        f"perplexity, held-out text ({tokens} tokens, bfloat16 weights)": f"{reached:.2f}",
        "questions of `corpus.py` answered exactly": f"{told} of {len(exchanges)}",
        "facts of the gate found, of 16 (formats as they were imitated)": ", ".join(
            f"{name} {count}" for name, count in found.items()
        ),
        "steps × tokens": f"{args.steps} × 32768",
        "made by": f"seed {args.seed}, NVFP4 in {args.nvfp4:g} of the imitating steps, "
        f"torch {torch.__version__} ({args.device}), transformers {transformers.__version__}",
        "text": f"SHA-256 over the sources' digests: `{text.sha256}`",
    }
    card = CARD + "".join(f"| {what} | {value} |\n" for what, value in rows.items())
    (args.out / "README.md").write_text(card, "utf-8")
    LOG.info("%s", json.dumps(rows))


if __name__ == "__main__":
    main()
