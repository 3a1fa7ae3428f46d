"""Stand-in for the LLM classes: refuses what the real ones refuse, answers by enginix's reference executor.

The stand-in's engines hold their checkpoint's weights, so what is asked of one is computed from what was
built into it. Faults that the stand-in driver asks for are made here.
"""

import json
import math
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

from . import __version__
from .llmapi import KvCacheConfig, SamplingParams, check_fields
from .standin import MARK, contract, misbehaves, sms

print("stand-in: answers are computed by enginix's reference executor, not by TensorRT-LLM", flush=True)


class Completion:
    def __init__(self, token_ids, finish_reason, generation_logits):
        self.token_ids, self.finish_reason = token_ids, finish_reason
        self.generation_logits = generation_logits


class Output:
    def __init__(self, completion, context_logits):
        self.outputs, self.context_logits = [completion], context_logits


class StandInLLM:
    """What both classes share."""

    own = ""
    gathers_context = gathers_generation = True

    def __init__(self, model, **given):
        if multiprocessing.parent_process() is not None:
            raise RuntimeError("An attempt has been made to start a new process")
        rows = contract("llm_arguments")
        if unknown := set(given) - set(rows["base"]) - set(rows[self.own]):
            raise ValueError(f"LLM got invalid argument: {sorted(unknown)[0]}")
        plain = {k: v for k, v in given.items() if not isinstance(v, KvCacheConfig)}
        check_fields({"tensorrt": "TrtLlmArgs"}.get(self.own, "TorchLlmArgs"), plain)
        if not sms():
            raise RuntimeError("No CUDA GPUs are available")
        ranks = given.get("tensor_parallel_size", 1) * given.get("pipeline_parallel_size", 1)
        if ranks == 1 and os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS") != "1":
            raise RuntimeError("MPI spawn: All nodes which are allocated for this job are already filled")
        self.tokenizer = None if given.get("skip_tokenizer_init") else "loaded"
        self.cache = given.get("kv_cache_config") or KvCacheConfig()
        if not isinstance(self.cache, KvCacheConfig):
            raise ValueError(
                "kv_cache_config: Input should be a valid dictionary or instance of KvCacheConfig"
            )
        self.given = given
        self.subject, self.known = self.load(Path(model)), {}

    def generate(self, inputs, sampling_params=None, use_tqdm=True):
        if not isinstance(inputs, list) or not inputs:
            raise IndexError("list index out of range")
        if isinstance(inputs[0], int):
            return self.generate([inputs], [sampling_params], use_tqdm)[0]
        if misbehaves("raises"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if misbehaves("hangs"):
            time.sleep(100000)
        several = isinstance(sampling_params, list)
        given = [sampling_params[n] if several else sampling_params for n in range(len(inputs))]
        for prompt, params in zip(inputs, given, strict=True):
            if not isinstance(params, SamplingParams):
                raise TypeError(
                    f"The sampling_params must be type SamplingParams or None, but got {type(params)}"
                )
            if params.end_id is None and self.tokenizer is None:
                raise ValueError("tokenizer is required to reset end_id if it is None")
            self.check(prompt, params)
        self.compute(inputs, given)
        return [self.answer(*pair, n, len(inputs)) for n, pair in enumerate(zip(inputs, given, strict=True))]

    def compute(self, inputs, given):
        """What was not computed before, as one batch; the same prompt has the same answer."""
        most = max(params.max_tokens for params in given)
        ends = self.ends(given[0])
        new = [prompt for prompt in inputs if (tuple(prompt), most) not in self.known]
        for prompt, tokens in zip(new, self.subject.generate(new, most, ends) if new else [], strict=True):
            self.known[tuple(prompt), most] = tokens
        self.most = most

    @staticmethod
    def ends(params):
        return frozenset([params.end_id, *(params.stop_token_ids or [])])

    def answer(self, prompt, params, number, company):
        ends = self.ends(params)
        context = None
        if params.return_context_logits:
            (context,) = self.subject.logits([prompt])
            # What was in the cache already is not computed again, and has no logits.
            context = context[len(context) // 2 :] if self.cache.enable_block_reuse else context
        tokens = self.known[tuple(prompt), self.most][: params.max_tokens]
        if misbehaves("crowded") and company > 1 and number % 2 and tokens:
            tokens = [*tokens[: len(tokens) // 2], 7, *tokens[len(tokens) // 2 + 1 :]]
        if misbehaves("fickle") and int(time.monotonic_ns()) % 2:
            tokens = [5, *tokens[1:]]
        if misbehaves("loops"):
            tokens = [9] * params.max_tokens
        finish = "stop" if tokens and tokens[-1] in ends else "length"
        if misbehaves("silent"):
            tokens, finish = [], "stop"
        generation = None
        if params.return_generation_logits and self.gathers_generation:
            (logits,) = self.subject.logits([[*prompt, *tokens]])
            generation = logits[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]
        if misbehaves("nan"):
            context = None if context is None else context * math.nan
            generation = None if generation is None else generation * math.nan
        # As the real ones: the end token is handed out, other stop tokens only where that is asked for.
        if (
            finish == "stop"
            and tokens
            and tokens[-1] != params.end_id
            and not params.include_stop_str_in_output
        ):
            tokens = tokens[:-1]
        return Output(Completion(list(tokens), finish, generation), context)

    def check(self, prompt, params):
        pass

    def shutdown(self):
        self.subject = None


class TorchLLM(StandInLLM):
    """The default class: the PyTorch backend."""

    own = "pytorch"

    def load(self, model):
        config = json.loads((model / "config.json").read_text())
        assert "pretrained_config" not in config, "engine_dir must be None"
        from enginix.evaluation.reference_answers.subject import TransformersSubject

        return TransformersSubject(model)

    def check(self, prompt, params):
        most = self.given.get("max_num_tokens", 8192)
        if len(prompt) > most:
            raise ValueError(
                f"The sum of prompt length ({len(prompt)}) should not exceed max_num_tokens ({most})"
            )
        if len(prompt) + params.max_tokens > self.given.get("max_seq_len", math.inf):
            raise ValueError("max_seq_len")


class EngineLLM(StandInLLM):
    """The class of the TensorRT backend, on an engine that is built."""

    own = "tensorrt"

    def load(self, model):
        config = json.loads((model / "config.json").read_text())
        assert config["version"] == __version__, "expecting library version"
        self.built = config["build_config"]
        mapping = config["pretrained_config"]["mapping"]
        for name in ("tp_size", "pp_size"):
            asked = {"tp_size": "tensor_parallel_size", "pp_size": "pipeline_parallel_size"}[name]
            if self.given.get(asked, 1) not in (1, mapping[name]):
                raise ValueError(
                    f"{name} {self.given[asked]} is not consistent with the engine's {mapping[name]}"
                )
        self.gathers_generation = self.given.get("gather_generation_logits", False)
        checkpoint = Path(tempfile.mkdtemp())
        (checkpoint / "config.json").write_text(json.dumps(config["pretrained_config"]))
        for rank in range(mapping["tp_size"] * mapping["pp_size"]):
            data = (model / f"rank{rank}.engine").read_bytes()
            (checkpoint / f"rank{rank}.safetensors").write_bytes(data.removeprefix(MARK))
        from enginix.evaluation.reference_answers.subject import ExecutorSubject
        from enginix.reference.executor import Executor

        return ExecutorSubject(Executor.load(checkpoint, "cpu", "float32"))

    def check(self, prompt, params):
        most = self.built["max_seq_len"]
        if len(prompt) + params.max_tokens > most:
            raise ValueError(
                f"The sum of prompt length and max_tokens should not exceed max_seq_len ({most})"
            )
        if params.logprobs and not self.gathers_generation:
            raise ValueError("`sampling_params.logprobs` requires `gather_generation_logits=True`")
        if params.prompt_logprobs and not self.built["gather_context_logits"]:
            raise ValueError("`sampling_params's prompt_logprobs` requires `gather_context_logits=True`")
        if params.return_context_logits and not self.built["gather_context_logits"]:
            raise RuntimeError("context logits were not gathered in this engine")
