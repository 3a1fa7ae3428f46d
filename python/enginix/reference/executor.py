"""Execute a TensorRT-LLM checkpoint with plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from enginix import device as devices
from enginix.errors import MachineError, UsageError
from enginix.reference import config as checkpoint_config
from enginix.reference import linear
from enginix.reference.cache import Decode, KeyValueCache, PackedPrompts, Prefill, move_to_device
from enginix.reference.executor_config import ExecutorConfig
from enginix.reference.graphs import DecodeSteps
from enginix.reference.layers import DecoderLayer, ForwardStep, LayerBuilder
from enginix.reference.prompt_check import check_prompt_tokens
from enginix.reference.rope import RopeTables
from enginix.reference.sampling import most_likely
from enginix.reference.weights import MergedWeights

# Enough tokens to keep a GPU's products large, and few enough that running answers do not wait long.
PROMPT_TOKENS = 8192


class Executor:
    """A loaded model. Not thread-safe; :class:`scheduler.Scheduler` gives it one thread.

    Attributes:
        config: the checkpoint's configuration.
        device: the device that it computes on.
        dtype: of weights and activations; norms, rotations, router and logits are always float32.
        steps_ahead: decode steps that are submitted before the tokens of the step before are read.
        prompt_tokens: tokens of new prompts computed together; 0 on the CPU, where each is computed alone.
        piece_tokens: tokens of a longer prompt computed at a time; 0 where prompts are computed whole.
    """

    def __init__(
        self, weights: MergedWeights, device: torch.device, dtype: torch.dtype, fp8_products: bool = False
    ) -> None:
        build = LayerBuilder(weights, device, dtype, fp8_products)
        self.config: ExecutorConfig = weights.config
        self.steps_ahead = 0 if device.type == "cpu" else 1
        self.prompt_tokens = 0 if device.type == "cpu" else PROMPT_TOKENS
        self.device, self.dtype = device, dtype
        self.rope = RopeTables(self.config, device)
        # A cache's captured steps go with it.
        self._steps = WeakKeyDictionary[KeyValueCache, DecodeSteps]()
        # Where a rotation depends on the length of the prompt, that of its pieces would be another one.
        self.piece_tokens = 0 if self.rope.depends_on_length else self.prompt_tokens
        self.embedding = build.tensor("transformer.vocab_embedding.weight")
        self.layers = [DecoderLayer(build, layer) for layer in range(self.config.layers)]
        self.norm = build.norm("transformer.ln_f")
        self.head = build.tensor("lm_head.weight")
        form = self.config.form
        self.head_bias = build.tensor("lm_head.bias") if form.head_bias else None
        # As transformers does, in the compute dtype.
        self.embedding_factor = float(torch.tensor(form.embedding_factor, dtype=dtype))
        self.embedding_norm = build.norm("transformer.ln_embed") if form.embedding_norm else None
        self.position_embedding: torch.Tensor | None = None
        if form.positions == "learned":
            self.position_embedding = build.tensor("transformer.position_embedding.weight")
        self.quantized = [one for one in build.linears if isinstance(one, linear.QuantizedLinear)]

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        *,
        fp8_products: bool = False,
    ) -> Executor:
        """Load a checkpoint directory, merging tensor-, pipeline- and expert-parallel ranks.

        A small model on the CPU sets torch to one thread, for the whole process.

        Args:
            checkpoint: directory with ``config.json`` and ``rank*.safetensors``.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: compute dtype; by default float32 on the CPU (the yardstick, and faster there than 16 bits
                without hardware support), the checkpoint's own elsewhere.
            fp8_products: multiply FP8 codes as FP8 kernels do, where a matrix allows it, and hold them as
                codes; by default products are those of the numbers that the codes stand for.

        Raises:
            CheckpointError: missing, misshapen or unknown tensors, or a number format not implemented.
            UsageError: no such dtype, or a device without FP8 products.
            MachineError: no such device, or too little memory on it.
        """
        config = checkpoint_config.read_executor_config(checkpoint)
        linear.refuse_unknown_format(config, str(checkpoint / "config.json"))
        torch_device = devices.find_device(device)
        if dtype is None:
            dtype = "float32" if torch_device.type == "cpu" else config.dtype
        if isinstance(dtype, str):
            if dtype not in checkpoint_config.DTYPES:
                raise UsageError(f"dtype {dtype!r}", fix=f"one of {', '.join(checkpoint_config.DTYPES)}")
            dtype = getattr(torch, dtype)
            assert isinstance(dtype, torch.dtype)
        if fp8_products and torch_device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
            raise UsageError(f"{device} has no FP8 products", fix="a GPU of SM 89 or later, or the emulation")
        try:
            with MergedWeights(checkpoint, config) as weights, torch.inference_mode():
                devices.limit_threads(weights.parameters, torch_device)
                return cls(weights, torch_device, dtype, fp8_products)
        except torch.OutOfMemoryError as e:
            raise MachineError(
                f"out of memory while loading: {e}",
                where=device,
                fix="use a larger device, or a smaller dtype",
            ) from e

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens, prompt and answer together."""
        return self.config.context

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse a prompt that the model cannot process.

        Raises:
            UsageError: empty, too long, or with a token outside the vocabulary.
        """
        check_prompt_tokens(tokens, self.max_length, self.config.vocab_size, "the model")

    def _hidden(self, tokens: torch.Tensor, step: ForwardStep) -> torch.Tensor:
        x = self._embed(tokens, step)
        for layer in self.layers:
            x = layer(x, step)
        return x

    def _embed(self, tokens: torch.Tensor, step: ForwardStep) -> torch.Tensor:
        x = self.embedding[tokens]
        if self.embedding_factor != 1.0:
            x = x * self.embedding_factor
        if self.position_embedding is not None:
            x = x + self.position_embedding[step.positions]
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return x

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.linear(self.norm(x), self.head, self.head_bias)
        factor, cap = self.config.form.logits_factor, self.config.form.logits_cap
        if cap is not None:
            return cap * torch.tanh(logits / cap)
        return logits if factor == 1.0 else logits * factor

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return self._project(x).float()

    def _fill_logits(self, tokens: torch.Tensor, step: ForwardStep, logits: torch.Tensor) -> None:
        logits.copy_(self._project(self._hidden(tokens, step)))

    def _ids(self, tokens: Sequence[int]) -> torch.Tensor:
        return move_to_device(tokens, self.device)

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[Sequence[int]], positions: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        """Return logits at every position, or at some positions, of every sequence.

        On the CPU sequences run one by one, so that no sequence's logits depend on its neighbours.

        Args:
            tokens: token ids of each sequence.
            positions: in each sequence; None for all.

        Returns:
            For each sequence float32 [T, vocab_size], or [len(positions), vocab_size], on the executor's
            device.

        Raises:
            UsageError: a sequence is empty, too long, or has tokens outside the vocabulary.
        """
        if positions is None:
            return list(self.iterate_logits(tokens))
        out = []
        for sequence in tokens:
            self.check_tokens(sequence)
            step = PackedPrompts(None, {0: len(sequence)}, self.rope)
            out.append(self._logits(self._hidden(self._ids(sequence), step)[list(positions)]))
        return out

    @torch.inference_mode()
    def iterate_logits(self, tokens: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """Yield what :meth:`forward` returns, one sequence's logits at a time."""
        for sequence in tokens:
            self.check_tokens(sequence)
        first = 0
        while first < len(tokens):
            end, total = first + 1, len(tokens[first])
            while end < len(tokens) and total + len(tokens[end]) <= self.prompt_tokens:
                end, total = end + 1, total + len(tokens[end])
            group = tokens[first:end]
            counts = [len(sequence) for sequence in group]
            step = PackedPrompts(None, dict(enumerate(counts)), self.rope)
            hidden = self._hidden(self._ids([t for sequence in group for t in sequence]), step)
            yield from map(self._logits, torch.split(hidden, counts))
            first = end

    @contextmanager
    def without_rounding(self) -> Iterator[None]:
        """Leave activations and cache unrounded within the block, so that only weights are quantized."""
        attentions = [layer.attention for layer in self.layers]
        roundings = [one.rounding for one in self.quantized], [one.round_kv for one in attentions]
        for operation in self.quantized:
            operation.rounding = None
        for attention in attentions:
            attention.round_kv = None
        try:
            yield
        finally:
            for operation, rounding in zip(self.quantized, roundings[0], strict=True):
                operation.rounding = rounding
            for attention, rounding in zip(attentions, roundings[1], strict=True):
                attention.round_kv = rounding

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[int]) -> list[torch.Tensor]:
        """Return each layer's output, float32 [T, hidden_size], the last one after the final norm."""
        self.check_tokens(tokens)
        step = Prefill(None, 0, 0, len(tokens), self.rope)
        x, out = self._embed(self._ids(tokens), step), list[torch.Tensor]()
        for layer in self.layers:
            x = layer(x, step)
            out.append(x.to(torch.float32, copy=True))
        return [*out[:-1], self.norm(x).float()]

    def new_cache(self, slots: int) -> KeyValueCache:
        """Return an empty cache for ``slots`` sequences at a time."""
        return KeyValueCache(self.config, slots, self.rope, self.device, self.dtype)

    @torch.inference_mode()
    def prefill(
        self, cache: KeyValueCache, slot: int, tokens: Sequence[int], *, extend: bool = False
    ) -> torch.Tensor:
        """Put tokens into a slot: a new sequence, or with ``extend`` more of its current one.

        Returns:
            Logits float32 [vocab_size] of the token after the last one.
        """
        self.check_tokens(tokens)
        start = cache.lengths[slot] if extend else 0
        piece = self.piece_tokens or len(tokens)
        for first in range(0, len(tokens), piece):
            ids = tokens[first : first + piece]
            hidden = self._hidden(self._ids(ids), Prefill(cache, slot, start, len(ids), self.rope))
            start += len(ids)
        cache.lengths[slot] = start
        return self._logits(hidden[-1:])[0]

    @torch.inference_mode()
    def prefill_all(
        self, cache: KeyValueCache, prompts: Mapping[int, Sequence[int]]
    ) -> dict[int, torch.Tensor]:
        """Put several new sequences into slots, computed together.

        Args:
            prompts: slot → tokens.

        Returns:
            For each slot logits float32 [vocab_size] of the next token.
        """
        for tokens in prompts.values():
            self.check_tokens(tokens)
        step = PackedPrompts(cache, {slot: len(tokens) for slot, tokens in prompts.items()}, self.rope)
        hidden = self._hidden(self._ids([t for tokens in prompts.values() for t in tokens]), step)
        ends = self._ids([end - 1 for end in itertools.accumulate(step.counts)])
        logits = self._logits(hidden[ends])
        for slot, tokens in prompts.items():
            cache.lengths[slot] = len(tokens)
        return dict(zip(prompts, logits, strict=True))

    @torch.inference_mode()
    def decode(self, cache: KeyValueCache, tokens: Mapping[int, int]) -> dict[int, torch.Tensor]:
        """Compute one more token for each of some slots.

        Args:
            tokens: slot → the token that continues it.

        Returns:
            For each slot logits float32 [vocab_size] of the next token.
        """
        active = sorted(tokens)
        rows = [tokens.get(slot, 0) for slot in range(cache.slots)]
        if self.steps_ahead:
            cache.tokens.copy_(self._ids(rows))
            logits = self.decode_stored(cache, active).clone()
            return {slot: logits[slot] for slot in active}
        step = Decode(cache, active, self.rope)
        logits = self._logits(self._hidden(torch.tensor(rows), step))
        for slot in active:
            cache.lengths[slot] += 1
        return {slot: logits[slot] for slot in active}

    @torch.inference_mode()
    def decode_stored(self, cache: KeyValueCache, active: Sequence[int]) -> torch.Tensor:
        """Submit a step for some slots, continued by the cache's ``tokens``, and do not wait.

        Returns logits float32 [rows, vocab_size], a row a slot, which the next step overwrites.
        """
        steps = self._steps.get(cache)
        if steps is None:
            # Experts are chosen on the host, and such rotations are computed there.
            capture = self.device.type == "cuda" and not (self.config.experts or self.rope.depends_on_length)
            steps = self._steps[cache] = DecodeSteps(self._fill_logits, cache, capture=capture)
        logits = steps.run(cache, active)
        for slot in active:
            cache.lengths[slot] += 1
        return logits

    def greedy(self, prompt: Sequence[int], max_tokens: int, end_ids: Iterable[int] = ()) -> list[int]:
        """Return the most likely continuation, token by token, including an end token if one comes."""
        cache, ends, out = self.new_cache(1), frozenset(end_ids), list[int]()
        logits = self.prefill(cache, 0, prompt)
        while True:
            out.append(most_likely(logits))
            if out[-1] in ends or len(out) >= max_tokens or len(prompt) + len(out) >= self.max_length:
                return out
            logits = self.decode(cache, {0: out[-1]})[0]
