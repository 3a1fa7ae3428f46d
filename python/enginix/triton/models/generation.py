"""One request: read its inputs, and collect its tokens into responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from enginix.tables import load_table
from enginix.triton.models.detokenizer import CONTEXT
from enginix.triton.models.request import Inputs, RequestError, read_boolean, read_integers, read_parameter
from enginix.triton.models.stop_words import StopWords, unpack_stop_words


@dataclass(frozen=True)
class GenerationLimits:
    """Limits of a server; 0 is no limit.

    Attributes:
        max_seq_len: tokens of prompt and answer together.
        max_tokens: largest request_output_len.
        end_ids: end tokens, unless the request names its own end_id.
        exclude_input: leave the prompt out of output_ids unless the request says otherwise.
    """

    max_seq_len: int = 0
    max_tokens: int = 0
    end_ids: frozenset[int] = frozenset()
    exclude_input: bool = True

    @staticmethod
    def of(config: Any) -> GenerationLimits:
        """Read the limits of a parsed ``config.pbtxt``."""
        return GenerationLimits(
            max_seq_len=int(read_parameter(config, "max_seq_len") or 0),
            max_tokens=int(read_parameter(config, "max_tokens_limit") or 0),
            end_ids=frozenset(read_integers(config, "end_ids")),
            exclude_input=read_boolean(config, "exclude_input_in_output", True),
        )


@dataclass(frozen=True)
class Order:
    """A request's checked inputs; fields for the scheduler have the scheduler's names."""

    prompt: tuple[int, ...]
    max_tokens: int
    end_ids: frozenset[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_tokens: int
    repetition_penalty: float
    logprobs: bool
    stop_words: tuple[tuple[int, ...], ...]
    streaming: bool
    exclude_input: bool
    return_num_input_tokens: bool
    return_num_output_tokens: bool

    def scheduled(self) -> dict[str, Any]:
        """Return the fields for the scheduler, in JSON types."""
        return {name: getattr(self, name) for name in SCHEDULED} | {"end_ids": sorted(self.end_ids)}


SCHEDULED = (
    "prompt",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "min_tokens",
    "repetition_penalty",
    "logprobs",
)


def read_order(inputs: Inputs, limits: GenerationLimits) -> Order:
    """Read and check one request of ``tensorrt_llm``.

    Raises:
        RequestError: an input is missing, out of range, or not supported by the executor.
    """
    ids, length = inputs.array("input_ids"), inputs.scalar("input_lengths")
    if ids is None or length is None:
        raise RequestError("input_ids and input_lengths are both needed")
    prompt = tuple(ids.reshape(-1).tolist())
    if not 0 < length <= len(prompt):
        raise RequestError(f"input_lengths: {length} is not between 1 and the {len(prompt)} input_ids")
    return build_order(
        inputs,
        limits,
        prompt=prompt[:length],
        max_tokens=inputs.scalar("request_output_len"),
        stop_words=_read_stop_words(inputs),
    )


def build_order(
    inputs: Inputs,
    limits: GenerationLimits,
    *,
    prompt: tuple[int, ...],
    max_tokens: Any,
    stop_words: tuple[tuple[int, ...], ...],
) -> Order:
    """Check one request with a prompt of token ids.

    Args:
        inputs: inputs by the names of ``tensorrt_llm``.
        max_tokens: the request's value; ``None`` if it is missing.

    Raises:
        RequestError: as :func:`read_order`.
    """
    _refuse_unsupported(inputs)
    check_lengths(len(prompt), max_tokens, limits.max_tokens, limits.max_seq_len)
    temperature, top_k, top_p = _read_sampling(inputs)
    return Order(
        prompt=prompt,
        max_tokens=max_tokens,
        end_ids=_select_end_ids(inputs, limits),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=_read_scalar(inputs, "seed", 0),
        min_tokens=_read_count(inputs, "min_tokens"),
        repetition_penalty=_read_positive(inputs, "repetition_penalty", 1.0),
        logprobs=_read_scalar(inputs, "return_log_probs", False),
        stop_words=stop_words,
        streaming=_read_scalar(inputs, "streaming", False),
        exclude_input=_read_scalar(inputs, "exclude_input_in_output", limits.exclude_input),
        return_num_input_tokens=_read_scalar(inputs, "return_num_input_tokens", False),
        return_num_output_tokens=_read_scalar(inputs, "return_num_output_tokens", False),
    )


def check_lengths(prompt: int, max_tokens: Any, max_tokens_limit: int, max_seq_len: int) -> None:
    """Refuse lengths above the engine's limits; a limit of 0 means no limit.

    Raises:
        RequestError: the request is too long; names the numbers and the accepted length.
    """
    if max_tokens is None:
        raise RequestError("max_tokens is missing")
    if max_tokens < 1:
        raise RequestError(f"max_tokens: {max_tokens} is not at least 1")
    if max_tokens_limit and max_tokens > max_tokens_limit:
        raise RequestError(f"max_tokens: {max_tokens} is above this server's limit of {max_tokens_limit}")
    if max_seq_len and prompt >= max_seq_len:
        raise RequestError(
            f"{prompt} prompt tokens; the engine holds {max_seq_len}, prompt and answer together"
        )
    if max_seq_len and prompt + max_tokens > max_seq_len:
        raise RequestError(
            f"max_tokens: {prompt} prompt tokens + {max_tokens} are above the engine's {max_seq_len}; "
            f"at most {max_seq_len - prompt} fit"
        )


def _read_scalar(inputs: Inputs, name: str, value: Any) -> Any:
    scalar = inputs.scalar(name)
    return value if scalar is None else scalar


def _read_count(inputs: Inputs, name: str) -> int:
    value = int(_read_scalar(inputs, name, 0))
    if value < 0:
        raise RequestError(f"{inputs.called(name)}: {value} is not at least 0")
    return value


def _read_positive(inputs: Inputs, name: str, default: float) -> float:
    value = float(_read_scalar(inputs, name, default))
    if not value > 0:
        raise RequestError(f"{inputs.called(name)}: {value} is not above 0")
    return value


def _read_sampling(inputs: Inputs) -> tuple[float, int, float]:
    """Return the scheduler's (temperature, top_k, top_p); temperature 0 is greedy.

    A request without the three is greedy, as TensorRT-LLM's default (top_k 0 and top_p 0 take the most likely
    token). Any of the three turns sampling on, with the others neutral; top_k 1, temperature 0, or a top_p of
    0 without top_k is greedy. Beside top_k a top_p of 0 sets no limit (TensorRT-LLM's regularizeTopKTopP).
    """
    temperature = inputs.scalar("temperature")
    top_k = _read_count(inputs, "runtime_top_k")
    given_top_p = inputs.scalar("runtime_top_p")
    top_p = float(given_top_p or 0.0)
    if not 0 <= top_p <= 1:
        raise RequestError(f"top_p: {top_p} is not between 0 and 1")
    if temperature is not None and temperature < 0:
        raise RequestError(f"temperature: {temperature} is below 0")
    is_sampled = top_k > 1 or top_p > 0 or (not top_k and given_top_p is None and temperature is not None)
    if temperature == 0 or top_k == 1 or not is_sampled:
        return 0.0, 0, 1.0
    return (1.0 if temperature is None else float(temperature)), top_k, top_p or 1.0


def _select_end_ids(inputs: Inputs, limits: GenerationLimits) -> frozenset[int]:
    """Return the end tokens: all of the model's if end_id is one of them; none if it is -1."""
    end_id = inputs.scalar("end_id")
    if end_id is None or end_id in limits.end_ids:
        return limits.end_ids
    return frozenset() if end_id < 0 else frozenset([end_id])


def _read_stop_words(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    rows = inputs.array("stop_words_list")
    if rows is None or not rows.size:
        return ()
    if rows.ndim != 3 or rows.shape[1] != 2:
        raise RequestError(f"stop_words_list: shape {rows.shape[1:]} is not (2, n)")
    try:
        return tuple(unpack_stop_words(rows[0, 0].tolist(), rows[0, 1].tolist()))
    except ValueError as e:
        raise RequestError(str(e)) from e


def _refuse_unsupported(inputs: Inputs) -> None:
    reference = load_table("triton_reference")["models"]["tensorrt_llm"]
    for name, only in reference["only"].items():
        value = inputs.scalar(name)
        if value is not None and value != only:
            raise RequestError(
                f"{inputs.called(name)}: {value} is not supported by enginix's executor, only {only}"
            )


@dataclass(frozen=True)
class Chunk:
    """One response.

    Attributes:
        ids: output_ids of this response.
        context: the ids before them, at most ``CONTEXT``.
        finish: ``stop``, ``length`` or ``cancelled`` on the last response, else ``None``.
        logprobs: natural logarithms, one for each generated id; empty unless requested.
        cumulative: sum of all log probabilities so far.
        generated: number of ids generated and shown so far.
    """

    ids: tuple[int, ...]
    context: tuple[int, ...]
    finish: str | None
    logprobs: tuple[float, ...]
    cumulative: float
    generated: int


@dataclass
class Generation:
    """Collects one request's tokens into responses: one for each token of a stream, else one at the end."""

    order: Order
    _stops: StopWords = field(init=False)
    _waiting: list[int] = field(default_factory=list)
    _logprobs: list[float] = field(default_factory=list)
    _shown: list[int] = field(default_factory=list)
    _generated: int = 0
    _cumulative: float = 0.0
    _pending_logprobs: list[float] = field(default_factory=list)
    _started: bool = False
    done: bool = False

    def __post_init__(self) -> None:
        self._stops = StopWords(self.order.stop_words)
        self._shown = list(self.order.prompt[-CONTEXT:])

    def push(
        self, token: int | None, logprob: float | None, finish: str | None, *, hold: bool = False
    ) -> Chunk | None:
        """Take one event of the scheduler; returns the chunk to send, if any.

        With ``hold`` the tokens wait for :meth:`flush`, except a stream's first one and the end.

        End ids and stop words are not shown. After the chunk with ``finish`` set, ``done`` is true and no
        chunk follows; if a stop word caused it, the caller cancels the request in the scheduler.
        """
        if self.done:
            return None
        ended = token is not None and token in self.order.end_ids
        if token is not None and not ended:
            self._pending_logprobs.append(logprob or 0.0)
            visible_ids, stopped = self._stops.push(token)
            self._take(visible_ids)
            if stopped:
                finish = "stop"
                self._pending_logprobs.clear()
        if finish is not None:
            self._take(self._stops.flush())
            self.done = True
        if self.done:
            return self._chunk(finish)
        return None if hold and self._started else self.flush()

    def flush(self) -> Chunk | None:
        """Return a chunk with the tokens that a stream can show now and has not shown."""
        if self.done or not self.order.streaming or not self._waiting:
            return None
        return self._chunk(None)

    def _take(self, ids: Sequence[int]) -> None:
        self._waiting += ids
        self._generated += len(ids)
        taken, self._pending_logprobs = self._pending_logprobs[: len(ids)], self._pending_logprobs[len(ids) :]
        self._logprobs += taken
        self._cumulative += sum(taken)

    def _chunk(self, finish: str | None) -> Chunk:
        ids, context = self._waiting, self._shown
        if not self._started and not self.order.exclude_input:
            ids, context = [*self.order.prompt, *ids], []
        chunk = Chunk(
            ids=tuple(ids),
            context=tuple(context),
            finish=finish,
            logprobs=tuple(self._logprobs) if self.order.logprobs else (),
            cumulative=self._cumulative,
            generated=self._generated,
        )
        self._started = True
        self._shown = [*self._shown, *self._waiting][-CONTEXT:]
        self._waiting, self._logprobs = [], []
        return chunk
