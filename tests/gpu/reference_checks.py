"""The reference executor on a GPU against itself on the CPU, and its speed beside transformers'.

Each check is a function (device, work directory) → rows of a table, as they are found; it raises
AssertionError where the GPU is wrong.
"""

from __future__ import annotations

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
from enginix.evaluation.reference_answers.answers import ReferenceAnswers, ask_reference, score_texts
from enginix.evaluation.reference_answers.hf import TransformersTokenizer
from enginix.evaluation.reference_answers.material import Material, load_material
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
# Tokens of a prompt, and decoded after its first.
LENGTHS = {"cpu": (128, 32), "cuda": (512, 128)}


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
    batch = _serve(scheduler, prompts, [40] * len(prompts))
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


def _serve(
    scheduler: Scheduler, prompts: list[tuple[int, ...]], lengths: list[int], *, one_by_one: bool = False
) -> list[list[int]]:
    """Tokens of each prompt, all sent at once, or each third one after the tokens of one before it."""
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

    for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        scheduler.add(GenerationRequest(str(number), prompt, length), sink)
        started = time.monotonic()
        # The next one comes when this one, or one before it, has its first tokens.
        waits = one_by_one and number % 3 == 2
        while waits and len(out[number - 2]) < 3 and time.monotonic() - started < 30:
            time.sleep(0.001)
    assert done.wait(300), "no answer"
    assert not failed, failed
    return out


def continuous(device: str, work: Path) -> list[Row]:
    """Requests that come while others decode, more of them than the batch holds, get what each gets alone."""
    checkpoint = models.tiny_qwen3(ROOT / "tests/models/tiny-qwen3", work / "tiny")
    cpu, gpu = (Executor.load(checkpoint, where, "float32") for where in ("cpu", device))
    prompts = [tuple((7 * i * j + 3) % 2000 for j in range(1, 5 + 11 * i)) for i in range(1, 13)]
    lengths = [16 + 5 * (i % 6) for i in range(len(prompts))]
    alone = [gpu.greedy(p, n) for p, n in zip(prompts, lengths, strict=True)]
    scheduler = Scheduler(gpu, 4)
    out = _serve(scheduler, prompts, lengths, one_by_one=True)
    scheduler.close()
    for prompt, ours, theirs in zip(prompts, out, alone, strict=True):
        _assert_equal_up_to_ties(cpu, prompt, ours, theirs)
    equal = sum(a == b for a, b in zip(out, alone, strict=True))
    value = f"{equal} of {len(prompts)} equal to those alone"
    return [Row("12 requests that come one by one, 4 at a time", value, "else only ties")]


def _wait(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(device: str, call: Callable[[], object]) -> float:
    started = _wait(device)
    call()
    return _wait(device) - started


def _beside(device: str, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Seconds of each: medians of three, in turns, after one of each that does not count."""
    ours(), theirs()
    found = [(_seconds(device, ours), _seconds(device, theirs)) for _ in range(3)]
    return statistics.median(f[0] for f in found), statistics.median(f[1] for f in found)


def _against(what: str, tokens: int, ours: float, theirs: float) -> Row:
    value = f"{tokens / ours:.0f} tokens/s, {theirs / ours:.2f} × of transformers' {tokens / theirs:.0f}"
    return Row(what, value if theirs >= ours else f"{value} SLOWER", "≥ 1.0 ×")


def _shapes(device: str) -> dict[str, dict[str, Any]]:
    if device == "cpu":
        return {"small": models.shape(models.QWEN3_8B, device)}
    return {
        "0.6B-shaped": models.shape(models.QWEN3_0_6B, device),
        "8B-shaped": models.shape(models.QWEN3_8B, device),
    }


def _dtype(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


def speed(device: str, work: Path) -> Iterator[Row]:
    """Prefill and decode beside transformers' generate, with the same random weights.

    Prefill is a prompt to its first token; decode is what the further tokens take.
    """
    dtype = _dtype(device)
    for name, shape in _shapes(device).items():
        weights = models.RandomWeights(device, **shape)
        executor = weights.load(dtype)
        try:
            model = models.transformers_qwen3(weights, dtype)
        except ImportError as e:
            yield Row(f"{name} beside transformers' generate", f"skipped: {e}")
            return
        yield from _speed(name, executor, model, device)
        del executor, model


def _prompts(device: str, rows: int) -> list[tuple[int, ...]]:
    return [tuple((31 * i + 7 * j) % 30000 for j in range(LENGTHS[device][0])) for i in range(rows)]


def _speed(name: str, executor: Executor, model: Any, device: str) -> Iterator[Row]:
    length, further = LENGTHS[device]
    prompts = _prompts(device, 16)

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
            _beside(device, partial(_serve, scheduler, some, [n] * rows), partial(generate, rows, n))
            for n in (1, 1 + further)
        )
        scheduler.close()
        decoded = (whole[0] - first[0], whole[1] - first[1])
        yield _against(f"{what}: prefill of {length}", rows * length, *first)
        yield _against(f"{what}: {further} tokens decoded", rows * further, *decoded)
        yield _against(f"{what}: {length} → {1 + further}, whole", rows * (1 + further), *whole)


def decode(device: str, work: Path) -> Iterator[Row]:
    """Prefill and decode alone, in batches of 1, 16 and 64."""
    for name, shape in _shapes(device).items():
        executor = models.RandomWeights(device, **shape).load(_dtype(device))
        for rows in (1, 16) if device == "cpu" else (1, 16, 64):
            yield from _decode(f"{name}, batch {rows}", executor, rows, device)
        del executor


def _decode(what: str, executor: Executor, rows: int, device: str) -> Iterator[Row]:
    length, further = LENGTHS[device]
    scheduler, prompts = Scheduler(executor, rows), _prompts(device, rows)

    def answer(tokens: int) -> float:
        return _seconds(device, partial(_serve, scheduler, prompts, [tokens] * rows))

    once = answer(1 + further)
    first, whole = (statistics.median(answer(n) for _ in range(5)) for n in (1, 1 + further))
    scheduler.close()
    yield Row(f"{what}: prefill of {length}", f"{rows * length / first:.0f} tokens/s")
    yield Row(f"{what}: {further} tokens decoded", f"{rows * further / (whole - first):.0f} tokens/s")
    yield Row(f"{what}: captures and first use", f"{once - whole:.2f} s")


def fp8(device: str, work: Path) -> Iterator[Row]:
    """FP8 products beside their emulation in the same dtype: how far each is from float32, and how fast."""
    for name, shape in _shapes(device).items():
        weights, dtype = models.RandomWeights(device, **shape, **models.FP8), torch.bfloat16
        (prompt,) = _prompts(device, 1)
        ways = {"emulated": weights.load(dtype), "FP8 products": weights.load(dtype, fp8_products=True)}
        (expected,) = weights.load(torch.float32).forward([prompt])
        found = {way: executor.forward([prompt])[0] for way, executor in ways.items()}
        errors = {way: _error(logits, expected) for way, logits in found.items()}
        for way, error in errors.items():
            yield _same(f"{name}: {way} from float32", error, 1.5 * errors["emulated"])
        yield Row(f"{name}: FP8 products from the emulation", f"{_error(*found.values()):.1e}")
        same = (found["FP8 products"].argmax(-1) == found["emulated"].argmax(-1)).double().mean()
        yield Row(f"{name}: same most likely token", f"{float(same):.1%}")
        del found
        for way, executor in ways.items():
            for rows in (1,) if device == "cpu" else (1, 16):
                yield from _decode(f"{name}, {way}, batch {rows}", executor, rows, device)
        del ways, executor


def gates(device: str, work: Path) -> Iterator[Row]:
    """Seconds of all gates of an engine of random weights, in float32 as gates compute, and what they say.

    The reference's answers are the engine's own, computed before: what transformers takes is not in it.
    """
    tokenizer = TransformersTokenizer(ROOT / "tests/models/tiny-qwen3")
    for name, shape in _shapes(device).items():
        for format_name, changes in (("bfloat16", {}), ("FP8", models.FP8)):
            changes = {**shape, "max_position_embeddings": 4096, **changes}
            weights = models.RandomWeights(device, **changes)
            subject = ExecutorSubject(weights.load(torch.float32))
            material = load_material(tokenizer, subject.vocab_size, subject.max_length)
            answers = ask_reference(subject, material, frozenset([0]), {}, tokenizer)
            engine = suite.JudgedEngine(ExecutorSubject(subject.executor), tokenizer, weights.config)
            names = [g for g in suite.GATES if g != suite.LOGITS]
            bounds = suite.resolve_checkpoint_bounds(weights.config, {gate: {} for gate in names})
            started = _wait(device)
            outcomes, _ = suite.run_gates(lambda e=engine: e, tokenizer, material, answers, bounds)  # type: ignore[misc]
            failed = ", ".join(f"{o.gate}: {o.summary}" for o in outcomes if not o.passed)
            yield Row(
                f"{name}, {format_name}: {len(outcomes)} gates", f"{_wait(device) - started:.1f} s", failed
            )
            del subject, engine


def scoring(device: str, work: Path) -> Iterator[Row]:
    """How fast the gates score text, and how much of the time is not spent in forward passes.

    The share is what scoring takes longer than forward passes alone over the same texts, in turns.
    """
    weights = models.RandomWeights(device, **models.shape(models.QWEN3_8B, device))
    texts = tuple(
        Prompt(str(i), "", tuple((31 * i + 7 * j) % 30000 for j in range(512)))
        for i in range(4 if device == "cpu" else 32)
    )
    tokens = [t.tokens for t in texts]
    for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
        subject = ExecutorSubject(weights.load(dtype))
        kept = tuple(score_texts(subject, tokens)[0])
        answers = ReferenceAnswers({}, "", frozenset(), kept, (), (), ())
        scored = suite.ScoredPassages(subject, Material("", (), texts, ()), answers)
        alone, whole = _beside(device, partial(_forward, subject, tokens), partial(_score, scored))
        name = f"{'small' if device == 'cpu' else '8B-shaped'} in {str(dtype).removeprefix('torch.')}"
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


CHECKS: dict[str, Check] = {
    "logits": logits,
    "greedy": greedy,
    "continuous": continuous,
    "decode": decode,
    "fp8": fp8,
    "gates": gates,
    "speed": speed,
    "scoring": scoring,
}
