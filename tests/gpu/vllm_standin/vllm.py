"""A stand-in of vLLM for a machine without a GPU: control flow alone, answers by transformers on the CPU.

What it answers says nothing about vLLM; it lets vllm_questions.py be tried before a GPU is there.
"""

from pathlib import Path
from types import SimpleNamespace

import torch

from enginix.evaluation.reference_answers.subject import TransformersSubject


class SamplingParams:
    def __init__(
        self,
        *,
        temperature,
        max_tokens,
        ignore_eos,
        detokenize,
        stop_token_ids=None,
        logprobs=None,
        prompt_logprobs=None,
    ):
        assert temperature == 0.0 and ignore_eos and not detokenize
        self.max_tokens, self.ends = max_tokens, frozenset(stop_token_ids or [])
        self.logprobs, self.prompt_logprobs = logprobs, prompt_logprobs


class LLM:
    def __init__(self, *, model, skip_tokenizer_init, **more):
        assert skip_tokenizer_init and not more["enable_prefix_caching"]
        self.is_dummy = more.get("load_format") == "dummy"
        if self.is_dummy:
            return
        self.subject = TransformersSubject(Path(model))

    def list_logs(self, logits, tokens, count):
        logs = logits.float().log_softmax(-1)
        rows = []
        for row, token in zip(logs, tokens, strict=True):
            top = row.topk(min(count, len(row)))
            listed = {int(i): SimpleNamespace(logprob=float(v)) for v, i in zip(*top, strict=True)}
            rows.append(listed | {int(token): SimpleNamespace(logprob=float(row[token]))})
        return rows

    def generate(self, prompts, params, use_tqdm=True):
        if self.is_dummy:
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1] * params.max_tokens)]) for _ in prompts
            ]
        given = [prompt["prompt_token_ids"] for prompt in prompts]
        most = max(one.max_tokens for one in params)
        answers = self.subject.generate(given, most, params[0].ends)
        out = []
        for tokens, answer, one in zip(given, answers, params, strict=True):
            answer = answer[: one.max_tokens]
            listed = listed_prompt = None
            if one.logprobs or one.prompt_logprobs:
                (logits,) = self.subject.logits([[*tokens, *answer]])
                following = torch.tensor([*tokens[1:], *answer])
                rows = self.list_logs(logits[:-1], following, one.logprobs or one.prompt_logprobs)
                listed = rows[len(tokens) - 1 :] if one.logprobs else None
                listed_prompt = [None, *rows[: len(tokens) - 1]] if one.prompt_logprobs else None
            finish = "stop" if answer and answer[-1] in one.ends else "length"
            completion = SimpleNamespace(token_ids=answer, finish_reason=finish, logprobs=listed)
            out.append(SimpleNamespace(outputs=[completion], prompt_logprobs=listed_prompt))
        return out
