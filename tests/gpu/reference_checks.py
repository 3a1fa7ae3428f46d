"""The reference executor on a GPU against itself on the CPU, and its speed beside transformers'.

Each check is a function (device, work directory) → rows of a table, as they are found; it raises
AssertionError where the GPU is wrong.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import models
from enginix.evaluation.judgement import suite
from enginix.evaluation.reference_answers.answers import ReferenceAnswers, score_texts
from enginix.evaluation.reference_answers.material import Material
from enginix.evaluation.reference_answers.prompts import Prompt
from enginix.evaluation.reference_answers.subject import ExecutorSubject
from enginix.reference.executor import Executor
from enginix.reference.scheduler import GenerationEvent, GenerationRequest, Scheduler

ROOT = Path(__file__).parents[2]
# float32 on both sides, TF32 off: only the order of sums differs.
FLOAT32 = 1e-4
# Of the time that gates take to score text.
MOST_OUTSIDE = 0.1
# bfloat16 keeps 8 significant bits, and rounds after every operation.
BFLOAT16 = 6e-2


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    what: str
    value: str
    bound: str = ""


Check = Callable[[str, Path], Iterable[Row]]


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    assert bool(torch.isfinite(found).all()), "not finite"
    scale = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    return float(((found - expected).norm(dim=-1) / scale).max())


def _same(what: str, error: float, bound: float) -> Row:
    assert error <= bound, f"{what}: {error:.2g} is above {bound:g}"
    return Row(what, f"{error:.1e}", f"≤ {bound:g}")


def logits(device: str, work: Path) -> list[Row]:
    """Prefill, and decode through the cache in a batch, for every architecture."""
    rows = []
    ids = [(37 * i + 11) % 1000 for i in range(96)]
    for architecture in models.ARCHITECTURES:
        checkpoint = models.random_checkpoint(work / architecture, architecture)
        (expected,) = Executor.load(checkpoint, "cpu", "float32").forward([ids])
        gpu = Executor.load(checkpoint, device, "float32")
        (found,) = gpu.forward([ids])
        rows.append(_same(f"{architecture} prefill float32", _error(found, expected), FLOAT32))
        if architecture != "Phi3ForCausalLM":  # longrope: cached keys keep the short factors, as they should
            cache = gpu.new_cache(3)
            gpu.prefill(cache, 0, ids[:20])
            gpu.prefill(cache, 2, ids[:90])
            worst = 0.0
            for at in range(4):
                out = gpu.decode(cache, {0: ids[20 + at], 2: ids[90 + at]})
                both = torch.stack([out[0], out[2]])
                worst = max(worst, _error(both, expected[[20 + at, 90 + at]]))
            rows.append(_same(f"{architecture} decode float32", worst, FLOAT32))
        if "moe" not in models.ARCHITECTURES[architecture]:
            # With experts a rounded router picks another expert: no bound holds for a random model.
            (narrow,) = Executor.load(checkpoint, device, "bfloat16").forward([ids])
            rows.append(_same(f"{architecture} prefill bfloat16", _error(narrow, expected), BFLOAT16))
    return rows


def greedy(device: str, work: Path) -> list[Row]:
    """The trained model says the same on both devices, alone and in a batch."""
    checkpoint = models.tiny_qwen3(ROOT / "tests/models/tiny-qwen3", work / "tiny")
    cpu, gpu = (Executor.load(checkpoint, where, "float32") for where in ("cpu", device))
    prompts = [tuple((7 * i * j + 3) % 2000 for j in range(1, 5 + 9 * i)) for i in range(1, 9)]
    expected = [cpu.greedy(p, 40) for p in prompts]
    alone = [gpu.greedy(p, 40) for p in prompts]
    scheduler = Scheduler(gpu, 8)
    batch = _serve(scheduler, prompts, 40)
    scheduler.close()
    rows = []
    for what, found in (("alone", alone), ("in a batch", batch)):
        for prompt, ours, theirs in zip(prompts, found, expected, strict=True):
            _assert_equal_up_to_ties(cpu, prompt, ours, theirs)
        equal = sum(a == b for a, b in zip(found, expected, strict=True))
        rows.append(Row(f"tiny-qwen3 greedy {what}", f"{equal} of {len(prompts)} equal", "else only ties"))
    return rows


def _assert_equal_up_to_ties(
    cpu: Executor, prompt: tuple[int, ...], ours: list[int], theirs: list[int]
) -> None:
    for at, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            (all_logits,) = cpu.forward([[*prompt, *theirs[:at]]])
            gap = float(all_logits[-1, b] - all_logits[-1, a])
            assert gap < 1e-3, f"token {at} differs, and the CPU prefers its own by {gap:.3g}"
            return


def _serve(scheduler: Scheduler, prompts: list[tuple[int, ...]], tokens: int) -> list[list[int]]:
    """Tokens of each prompt."""
    out: list[list[int]] = [[] for _ in prompts]
    failed: list[str] = []
    left, done = [len(prompts)], threading.Event()

    def sink(event: GenerationEvent) -> None:
        if event.token is not None:
            out[int(event.id)].append(event.token)
        if event.error:
            failed.append(event.error)
        if event.finish:
            left[0] -= 1
            if not left[0]:
                done.set()

    for number, prompt in enumerate(prompts):
        scheduler.add(GenerationRequest(str(number), prompt, tokens), sink)
    assert done.wait(300), "no answer"
    assert not failed, failed
    return out


def _wait(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(device: str, call: Callable[[], object]) -> float:
    started = _wait(device)
    call()
    return _wait(device) - started


def _beside(device: str, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Seconds of each: medians of five, in turns, after one of each that does not count."""
    ours(), theirs()
    found = [(_seconds(device, ours), _seconds(device, theirs)) for _ in range(5)]
    return statistics.median(f[0] for f in found), statistics.median(f[1] for f in found)


def _against(what: str, tokens: int, ours: float, theirs: float) -> Row:
    value = f"{tokens / ours:.0f} tokens/s, {theirs / ours:.2f} × of transformers' {tokens / theirs:.0f}"
    return Row(what, value if theirs >= ours else f"{value} SLOWER", "≥ 1.0 ×")


def speed(device: str, work: Path) -> Iterator[Row]:
    """Prefill and decode beside transformers' generate, on the same random checkpoint.

    Prefill is a prompt to its first token; decode is what the further tokens take.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    for name, named in (("0.6B-shaped", models.QWEN3_0_6B), ("8B-shaped", models.QWEN3_8B)):
        if device == "cpu":
            name = "small"
            if named is models.QWEN3_8B:
                continue
        shape = models.shape(named, device)
        checkpoint = models.random_checkpoint(work / name, "Qwen3ForCausalLM", device, **shape)
        executor = Executor.load(checkpoint, device, dtype)
        try:
            model = models.transformers_qwen3(checkpoint, device, dtype)
        except ImportError as e:
            yield Row(f"{name} beside transformers' generate", f"skipped: {e}")
            return
        shutil.rmtree(checkpoint)
        yield from _speed(name, executor, model, device)
        del executor, model


def _speed(name: str, executor: Executor, model: Any, device: str) -> Iterator[Row]:
    length, further = (128, 32) if device == "cpu" else (512, 128)
    prompts = [tuple((31 * i + 7 * j) % 30000 for j in range(length)) for i in range(16)]

    def generate(rows: int, tokens: int) -> torch.Tensor:
        ids = torch.tensor(prompts[:rows], device=device)
        found: torch.Tensor = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        return found

    with torch.inference_mode():
        logits = model(torch.tensor(prompts[:1], device=device)).logits[0]
    error = _error(executor.forward(prompts[:1])[0], logits)
    yield _same(f"{name}: logits against transformers'", error, FLOAT32 if device == "cpu" else BFLOAT16)
    for rows in (1, 16):
        what, some = f"{name}, batch {rows}", prompts[:rows]
        scheduler = Scheduler(executor, rows)  # lives as long as a server does
        first, whole = (
            _beside(device, partial(_serve, scheduler, some, n), partial(generate, rows, n))
            for n in (1, 1 + further)
        )
        scheduler.close()
        decoded = (whole[0] - first[0], whole[1] - first[1])
        yield _against(f"{what}: prefill of {length}", rows * length, *first)
        yield _against(f"{what}: {further} tokens decoded", rows * further, *decoded)
        yield _against(f"{what}: {length} → {1 + further}, whole", rows * (1 + further), *whole)


def scoring(device: str, work: Path) -> Iterator[Row]:
    """How fast the gates score text, and how much of the time is not spent in forward passes.

    The share is what scoring takes longer than forward passes alone over the same texts, in turns.
    """
    shape = models.shape(models.QWEN3_8B, device)
    checkpoint = models.random_checkpoint(work / "scoring", "Qwen3ForCausalLM", device, **shape)
    texts = tuple(
        Prompt(str(i), "", tuple((31 * i + 7 * j) % 30000 for j in range(512)))
        for i in range(4 if device == "cpu" else 32)
    )
    tokens = [t.tokens for t in texts]
    for dtype in ("float32",) if device == "cpu" else ("float32", "bfloat16"):
        subject = ExecutorSubject(Executor.load(checkpoint, device, dtype))
        kept = tuple(score_texts(subject, tokens)[0])
        answers = ReferenceAnswers({}, "", frozenset(), kept, (), (), ())
        scored = suite.ScoredPassages(subject, Material("", (), texts, ()), answers)
        alone, whole = _beside(device, partial(_forward, subject, tokens), partial(_score, scored))
        name = f"{'small' if device == 'cpu' else '8B-shaped'} in {dtype}"
        yield Row(f"{name}: text scored", f"{sum(map(len, tokens)) / whole:.0f} tokens/s")
        share = 1 - alone / whole
        said = f"{share:.1%}{'' if share <= MOST_OUTSIDE else ' ABOVE'}"
        yield Row(f"{name}: time outside forward passes", said, f"≤ {MOST_OUTSIDE:.0%}")
        del subject, scored


def _forward(subject: ExecutorSubject, tokens: list[tuple[int, ...]]) -> None:
    for _ in subject.logits(tokens):
        pass


def _score(scored: suite.ScoredPassages) -> None:
    _, kl = suite.ScoredPassages(scored.subject, scored.material, scored.answers).get()
    assert float(torch.cat(list(kl)).max()) < 1e-6, "a model differs from itself"


CHECKS: dict[str, Check] = {"logits": logits, "greedy": greedy, "speed": speed, "scoring": scoring}
