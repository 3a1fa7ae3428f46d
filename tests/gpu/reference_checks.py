"""The reference executor on a GPU against itself on the CPU, and its speed beside transformers'.

Each check is a function (device, work directory) → rows of a table; it raises AssertionError where the GPU is
wrong.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import models
from enginix.reference.executor import Executor
from enginix.reference.scheduler import Event, Request, Scheduler

ROOT = Path(__file__).parents[2]
# float32 on both sides, TF32 off: only the order of sums differs.
FLOAT32 = 1e-4
# bfloat16 keeps 8 significant bits, and rounds after every operation.
BFLOAT16 = 6e-2


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    what: str
    value: str
    bound: str = ""


Check = Callable[[str, Path], list[Row]]


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
    batch = _serve(gpu, prompts, 40, slots=8)[0]
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
    executor: Executor, prompts: list[tuple[int, ...]], tokens: int, slots: int
) -> tuple[list[list[int]], float]:
    """Tokens of each prompt, and seconds."""
    out: list[list[int]] = [[] for _ in prompts]
    failed: list[str] = []
    left, done = [len(prompts)], threading.Event()

    def sink(event: Event) -> None:
        if event.token is not None:
            out[int(event.id)].append(event.token)
        if event.error:
            failed.append(event.error)
        if event.finish:
            left[0] -= 1
            if not left[0]:
                done.set()

    scheduler = Scheduler(executor, slots)
    started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        scheduler.add(Request(str(number), prompt, tokens), sink)
    assert done.wait(300), "no answer"
    seconds = time.perf_counter() - started
    scheduler.close()
    assert not failed, failed
    return out, seconds


# Qwen3-0.6B's shape; random weights.
SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_size": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 4096,
}


# What a CPU shared with others does in seconds; float32, which is the executor's dtype there.
SHAPE_CPU = {
    **SHAPE,
    "vocab_size": 32000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_size": 64,
    "intermediate_size": 1536,
}


def speed(device: str, work: Path) -> list[Row]:
    """Prefill and decode of a random model; batch 16 against batch 1, side by side.

    On a GPU it has Qwen3-0.6B's shape, in bfloat16; on the CPU a smaller one, in float32.
    """
    shape, dtype, name = (
        (SHAPE_CPU, torch.float32, "25M") if device == "cpu" else (SHAPE, torch.bfloat16, "0.6B-shaped")
    )
    checkpoint = models.random_checkpoint(work / "speed", "Qwen3ForCausalLM", device, **shape)
    executor = Executor.load(checkpoint, device, dtype)
    prompts = [tuple((31 * i + j) % 30000 for j in range(128 if device == "cpu" else 512)) for i in range(16)]
    _serve(executor, prompts[:1], 8, slots=1)  # warm up
    rows = []
    rates = {}
    for slots in (1, 16):
        _, seconds = _serve(executor, prompts[:slots], 64, slots)
        rates[slots] = slots * 64 / seconds
        rows.append(Row(f"{name}, {slots} × ({len(prompts[0])} → 64 tokens)", f"{rates[slots]:.0f} tokens/s"))
    rows.append(Row("batch 16 over batch 1", f"{rates[16] / rates[1]:.1f} ×"))
    return [*rows, *_beside_transformers(executor, device, prompts, rates, shape)]


def _beside_transformers(
    executor: Executor,
    device: str,
    prompts: list[tuple[int, ...]],
    rates: dict[int, float],
    shape: dict[str, int],
) -> list[Row]:
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError as e:
        return [Row("beside transformers' generate", f"skipped: {e}")]
    config = Qwen3Config(
        **{k: v for k, v in shape.items() if k != "head_size"},
        head_dim=shape["head_size"],
        tie_word_embeddings=False,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(executor.dtype).eval()
    rows = []
    for slots in (1, 16):
        ids = torch.tensor(prompts[:slots], device=device)
        for measured in (False, True):
            started = time.perf_counter()
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, min_new_tokens=64,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
            seconds = time.perf_counter() - started
            if measured:
                theirs = slots * 64 / seconds
                ratio = f"{rates[slots] / theirs:.2f} × of transformers' {theirs:.0f} tokens/s"
                rows.append(Row(f"beside transformers' generate, batch {slots}", ratio))
    return rows


def scoring(device: str, work: Path) -> list[Row]:
    """How fast the gates score text, and how much of the time is not spent in forward passes."""
    from enginix.gates import quality
    from enginix.gates.answers import passage

    shape, dtype = (SHAPE_CPU, torch.float32) if device == "cpu" else (SHAPE, torch.bfloat16)
    checkpoint = models.random_checkpoint(work / "scoring", "Qwen3ForCausalLM", device, **shape)
    executor = Executor.load(checkpoint, device, dtype)
    count = 2 if device == "cpu" else 32
    texts = [tuple((31 * i + 7 * j) % 30000 for j in range(512)) for i in range(count)]

    def wait() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.inference_mode():
        kept = [passage(executor.forward([t])[0][:-1].log_softmax(-1), t) for t in texts[:1]]
        inside = 0.0
        started = wait()
        for text in texts:
            before = wait()
            (found,) = executor.forward([text])
            inside += wait() - before
            logs = found[:-1].log_softmax(-1)
            passage(logs, text)
            quality.divergence(logs, kept[0])
        total = wait() - started
    tokens = sum(map(len, texts))
    return [
        Row("gates: text scored", f"{tokens / total:.0f} tokens/s"),
        Row("gates: time outside forward passes", f"{1 - inside / total:.1%}", "aim 10%"),
    ]


CHECKS: dict[str, Check] = {"logits": logits, "greedy": greedy, "speed": speed, "scoring": scoring}
