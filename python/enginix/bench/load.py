"""A load of streamed completions on an OpenAI endpoint, and when each piece of each answer came."""

from __future__ import annotations

import contextlib
import json
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from enginix.errors import EndpointError, UsageError
from enginix.up.chat import list_models, open_stream

# Common words, of one token in most vocabularies.
WORDS = (
    "the of and to in is that it for was on are as with his they at be this from have or by one "
    "had not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more her two like him see "
    "time could no make than first been its who now people"
)


@dataclass(frozen=True)
class RequestMix:
    """What is asked, and how.

    Attributes:
        input_words: of each prompt; about as many tokens.
        output_tokens: ``max_tokens`` of each request.
        requests: that are measured.
        concurrency: requests at the same time.
        rate: requests a second, begun by the clock; None begins one when another has ended.
        warmup: requests before the measured ones.
        seed: of the prompts, which all differ: no server answers them from a cache of prefixes.
    """

    input_words: int = 128
    output_tokens: int = 64
    requests: int = 32
    concurrency: int = 1
    rate: float | None = None
    warmup: int = 2
    seed: int = 0

    def check(self) -> None:
        """Raise ``UsageError`` for numbers that measure nothing."""
        for name in ("input_words", "output_tokens", "requests", "concurrency"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} is {getattr(self, name)}", fix="pass at least 1")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise UsageError(f"--rate is {self.rate}", fix="pass requests a second, above 0")
        if self.warmup < 0:
            raise UsageError(f"--warmup is {self.warmup}", fix="pass at least 0")


@dataclass(frozen=True)
class RequestRecord:
    """One measured request; times in seconds since the load began.

    Attributes:
        due: when it was to begin. Latencies count from here, so that a server that keeps requests waiting
            does not look fast.
        pieces: when each piece with text came.
        ended: when the answer was complete, or failed.
        input_tokens: as the server counts them; None where it does not say.
        output_tokens: as the server counts them, else the number of pieces.
        error: why there is no answer; None for an answer.
        status: of an answer that refuses the request; None otherwise.
    """

    due: float
    pieces: tuple[float, ...]
    ended: float
    input_tokens: int | None
    output_tokens: int
    error: str | None = None
    status: int | None = None


def explain_refusal(url: str, model: str, mix: RequestMix, key: str | None, status: int | None) -> str:
    """Return how to mend a load whose requests an endpoint refuses with a status."""
    with contextlib.suppress(EndpointError, UsageError, KeyError, TypeError, OSError):
        if status in (400, 404, 422) and model not in (names := list_models(url, key)):
            return f"--model {' or '.join(names[:8])}" if names else "start a model there"
    if status in (401, 403):
        return "pass the endpoint's key, which may use this model: --key-file FILE"
    if status == 404:
        return "pass an endpoint that has OpenAI's completions, up to its /v1"
    if status in (400, 413, 422):
        return (
            f"ask for less where the message names a length: --input-words (now {mix.input_words}), "
            f"--output-tokens (now {mix.output_tokens})"
        )
    if status == 429:
        return f"ask less often: --concurrency (now {mix.concurrency}), --rate; or raise the key's limits"
    return "see that the endpoint answers: enginix chat " + url


def make_prompt(mix: RequestMix, number: int) -> str:
    """Return the prompt of one request: the same for the same seed and number."""
    chance = random.Random(f"{mix.seed}/{number}")
    return " ".join(chance.choices(WORDS.split(), k=mix.input_words))


def format_dataset(mix: RequestMix) -> str:
    """Return the measured requests as ``trtllm-bench --dataset`` reads them, a line each.

    Source: tensorrt_llm/bench/utils/data.py, ``create_dataset_from_stream``.
    """
    mix.check()
    rows = (
        {"task_id": number, "prompt": make_prompt(mix, number), "output_tokens": mix.output_tokens}
        for number in range(mix.requests)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_load(
    url: str,
    model: str,
    mix: RequestMix,
    key: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[RequestRecord]:
    """Ask the warm-up requests one after another, then the measured ones; return these.

    Raises:
        UsageError: the mix measures nothing.
        EndpointError: the endpoint answers no warm-up request.
    """
    mix.check()
    for number in range(mix.warmup):
        _ask_beforehand(url, model, mix, -1 - number, key)
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(mix.requests):
        numbers.put(number)
    records: list[RequestRecord] = []
    lock = threading.Lock()
    begun = time.monotonic()

    def work() -> None:
        while True:
            try:
                number = numbers.get_nowait()
            except queue.Empty:
                return
            if mix.rate is None:
                due = time.monotonic() - begun
            else:
                due = number / mix.rate
                time.sleep(max(0.0, begun + due - time.monotonic()))
            record = _ask(url, model, mix, number, key, begun, due)
            with lock:
                records.append(record)
                progress(len(records))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(mix.concurrency, mix.requests))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sorted(records, key=lambda record: record.due)


def ask_once(url: str, model: str, mix: RequestMix, key: str | None = None) -> float:
    """Ask one request that is no part of the load; return when its first piece came.

    Returns:
        Seconds by the clock of ``time.monotonic``.

    Raises:
        EndpointError: the endpoint does not answer it.
    """
    mix.check()
    return _ask_beforehand(url, model, mix, -1 - mix.warmup, key)


def _ask_beforehand(url: str, model: str, mix: RequestMix, number: int, key: str | None) -> float:
    begun = time.monotonic()
    record = _ask(url, model, mix, number, key, begun, 0.0)
    if record.error is not None:
        fix = explain_refusal(url, model, mix, key, record.status)
        raise EndpointError(record.error, where=url, fix=fix, status=record.status)
    return begun + (record.pieces[0] if record.pieces else record.ended)


def _ask(
    url: str, model: str, mix: RequestMix, number: int, key: str | None, begun: float, due: float
) -> RequestRecord:
    request = {
        "model": model,
        "prompt": make_prompt(mix, number),
        "max_tokens": mix.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    pieces: list[float] = []
    usage: dict[str, Any] = {}
    error = status = None
    try:
        for event in open_stream(f"{url}/completions", request, key):
            if any(choice.get("text") for choice in event.get("choices", [])):
                pieces.append(time.monotonic() - begun)
            usage = event.get("usage") or usage
        if not pieces and not usage.get("completion_tokens"):
            error = "an answer without text"
    except (EndpointError, json.JSONDecodeError, OSError) as e:
        error, status = (e.what, e.status) if isinstance(e, EndpointError) else (str(e), None)
    ended = time.monotonic() - begun
    counted = usage.get("completion_tokens")
    return RequestRecord(
        due, tuple(pieces), ended, usage.get("prompt_tokens"), counted or len(pieces), error, status
    )
