"""The part of TensorRT-LLM's LLM API that ``trtllm_script.py`` uses, in terms of vLLM's ``LLM``.

vLLM hands out log-probabilities of the most likely tokens. A row of logits is made of them: listed tokens have
theirs, all others share what is left, so that log_softmax gives the listed ones back.
"""

import json
import math
import os
from dataclasses import dataclass

import torch
import vllm

LISTED = 64
"""Most likely tokens listed of each position; the questions ask for 64 of texts, and 16 of answers."""


class KvCacheConfig:
    """Of its fields, only ``enable_block_reuse`` has a meaning here."""

    def __init__(self, enable_block_reuse=True, **more):
        self.enable_block_reuse = enable_block_reuse


@dataclass
class SamplingParams:
    """Greedy sampling, as ``trtllm_script.build_sampling_params`` asks for it."""

    end_id: int
    pad_id: int
    max_tokens: int
    top_k: int
    stop_token_ids: list | None = None
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    return_generation_logits: bool = False
    return_context_logits: bool = False

    def translate(self):
        """Return vLLM's parameters. End tokens are those that are asked for, not those of the model's files."""
        if self.top_k != 1 or self.detokenize or self.add_special_tokens:
            raise ValueError("the adapter is greedy, and takes and gives token ids alone")
        ends = [self.end_id, *(self.stop_token_ids or [])]
        if os.environ.get("VLLM_ADAPTER_FAULT") == "never-stops":
            ends = []
        return vllm.SamplingParams(
            temperature=0.0,
            max_tokens=self.max_tokens,
            stop_token_ids=[end for end in ends if end >= 0] or None,
            ignore_eos=True,
            detokenize=False,
            logprobs=LISTED if self.return_generation_logits else None,
            prompt_logprobs=LISTED if self.return_context_logits else None,
        )


@dataclass
class Completion:
    token_ids: list
    finish_reason: str
    generation_logits: torch.Tensor | None


@dataclass
class Output:
    outputs: list
    context_logits: torch.Tensor | None


def build_logits(position, vocab_size):
    """Return a row whose log_softmax has the listed log-probabilities: float32 [vocab_size]."""
    ids = torch.tensor(list(position))
    logs = torch.tensor([entry.logprob for entry in position.values()], dtype=torch.float64)
    left = max(1.0 - float(logs.exp().sum()), 1e-12)
    row = torch.full((vocab_size,), math.log(left / max(vocab_size - len(ids), 1)), dtype=torch.float64)
    row[ids] = logs
    return row.float()


class LLM:
    """One model in this process, without reuse of cached blocks."""

    def __init__(
        self, model, skip_tokenizer_init, kv_cache_config, max_batch_size, max_num_tokens, max_seq_len, **more
    ):
        if kv_cache_config.enable_block_reuse:
            raise ValueError("prompt log-probabilities need a prompt that is computed whole")
        with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
            self.vocab_size = int(json.load(file)["vocab_size"])
        ignored = set(more) - {"max_beam_width", "max_input_len", "tensor_parallel_size"}
        if ignored:
            raise ValueError(f"the adapter has no argument {sorted(ignored)}")
        self.llm = vllm.LLM(
            model=model,
            skip_tokenizer_init=skip_tokenizer_init,
            enable_prefix_caching=False,
            max_num_seqs=max_batch_size,
            max_num_batched_tokens=max_num_tokens,
            max_model_len=max_seq_len,
            dtype="bfloat16",
            # A fixed size, so that engines can be asked beside each other on one GPU.
            kv_cache_memory_bytes=2 << 30,
            gpu_memory_utilization=0.1,
            max_logprobs=LISTED,
            logprobs_mode="raw_logprobs",
            generation_config="vllm",
            enforce_eager=os.environ.get("VLLM_ADAPTER_EAGER") == "1",
            seed=0,
        )

    def generate(self, inputs, sampling_params, use_tqdm=True):
        """Return the answers to lists of token ids, in their order."""
        prompts = [{"prompt_token_ids": list(tokens)} for tokens in inputs]
        found = self.llm.generate(
            prompts, [params.translate() for params in sampling_params], use_tqdm=use_tqdm
        )
        return [
            self._convert_output(tokens, params, one)
            for tokens, params, one in zip(inputs, sampling_params, found, strict=True)
        ]

    def _convert_output(self, tokens, params, found):
        (answer,) = found.outputs
        generation = context = None
        if params.return_generation_logits and answer.logprobs:
            generation = torch.stack([build_logits(one, self.vocab_size) for one in answer.logprobs])
        if params.return_context_logits:
            # vLLM lists, for each token of the prompt but the first, what the tokens before it predict; the
            # row after the last is that of the generated token, which nothing reads.
            rows = [build_logits(one, self.vocab_size) for one in found.prompt_logprobs[1 : len(tokens)]]
            context = torch.stack([*rows, torch.zeros(self.vocab_size)])
        return Output([Completion(list(answer.token_ids), answer.finish_reason, generation)], context)

    def shutdown(self):
        """End the engine."""
        del self.llm
