"""Run inside a runtime of TensorRT-LLM: ask an engine by the LLM API, and write its answers.

It imports nothing of enginix. Called with one argument, a JSON file with kind, model, arguments, limit,
longest, contextLogits, asked (asked.json) and output (a directory). Unavailable results are listed as absent;
values that are not finite are written unchanged. said.json is written last.
"""

import json
import os
import sys
from importlib import import_module
from typing import Any


def build_sampling_params(api: Any, question_set: dict[str, Any], most: int, **more: Any) -> Any:
    """Return greedy sampling parameters in token ids alone, independent of the runtime's tokenizer."""
    ends = question_set["ends"] or [-1]
    return api.SamplingParams(
        end_id=ends[0],
        pad_id=ends[0],
        stop_token_ids=ends[1:] or None,
        include_stop_str_in_output=True,
        max_tokens=most,
        top_k=1,
        detokenize=False,
        add_special_tokens=False,
        **more,
    )


def select_top_tokens(torch: Any, logits: Any, count: int, vocab_size: int) -> tuple[Any, Any, Any]:
    """Return log-probabilities over the model's own vocabulary, and the most likely tokens with theirs."""
    logs = logits.float().cpu()[:, :vocab_size].log_softmax(-1)
    top_logs, ids = logs.topk(min(count, logs.shape[-1]), -1)
    return logs, ids.to(torch.int32).contiguous(), top_logs.contiguous()


class TrtllmAsker:
    """One engine, and its answers.

    Attributes:
        limit: largest number of tokens of prompt and answer together.
        longest: largest number of tokens of a prompt.
        said: content of said.json.
        tensors: content of said.safetensors.
    """

    def __init__(
        self, llm: Any, api: Any, torch: Any, question_set: dict[str, Any], request: dict[str, Any]
    ) -> None:
        self.llm, self.api, self.torch, self.asked = llm, api, torch, question_set
        self.limit, self.longest = int(request["limit"]), int(request["longest"])
        self.said: dict[str, Any] = {"runs": {}, "passages": [], "absent": {}}
        self.tensors: dict[str, Any] = {}

    def room(self, text: dict[str, Any], most: int) -> int:
        """Return the number of tokens that fit after a prompt; 0 if the engine does not take the prompt."""
        length = len(text["tokens"])
        return min(most, self.limit - length) if length <= self.longest else 0

    def run(self, name: str, texts: list[dict[str, Any]], most: int, *, alone: bool, logits: bool) -> None:
        """Ask texts together or one after another, and store the answers under ``name``."""
        fitting = [n for n, text in enumerate(texts) if self.room(text, most) > 0]
        completions: list[Any] = [None] * len(texts)
        more = {"return_generation_logits": True} if logits else {}
        for group in [[n] for n in fitting] if alone else [fitting] if fitting else []:
            given = [
                build_sampling_params(self.api, self.asked, self.room(texts[n], most), **more) for n in group
            ]
            # A list of lists of token ids: a single list would be one prompt.
            outputs = self.llm.generate([texts[n]["tokens"] for n in group], given, use_tqdm=False)
            for n, output in zip(group, outputs, strict=True):
                completions[n] = output.outputs[0]
            print(f"{name}: {len(group)} answers", flush=True)  # noqa: T201
        self.said["runs"][name] = [
            None if one is None else {"tokens": [int(t) for t in one.token_ids], "finish": one.finish_reason}
            for one in completions
        ]
        if logits and name == "batch":
            for n, one in enumerate(completions):
                self.keep_next(n, one)

    def keep_next(self, n: int, one: Any) -> None:
        """Store the log-probabilities of a generated answer's positions, if the runtime returns them."""
        logits = None if one is None else one.generation_logits
        if logits is None or len(logits) < len(one.token_ids):
            self.said["absent"].setdefault("next", "the runtime gave no logits of generated tokens")
            return
        _, ids, logs = select_top_tokens(self.torch, logits, self.asked["next"], self.asked["vocab_size"])
        self.tensors[f"next.{n}.ids"], self.tensors[f"next.{n}.logs"] = ids, logs

    def score(self) -> None:
        """Store the distributions on the evaluation texts, each text asked alone."""
        for n, text in enumerate(self.asked["passages"]):
            tokens = text["tokens"][: min(self.limit - 1, self.longest)]
            output = self.llm.generate(
                [tokens],
                [build_sampling_params(self.api, self.asked, 1, return_context_logits=True)],
                use_tqdm=False,
            )[0]
            logits = output.context_logits
            if logits is None or len(logits) != len(tokens):
                got = "none" if logits is None else str(list(logits.shape))
                self.said["absent"]["passages"] = (
                    f"context logits of {text['id']}: {got}, for {len(tokens)} tokens"
                )
                return
            logs, ids, top_logs = select_top_tokens(
                self.torch, logits[:-1], self.asked["kept"], self.asked["vocab_size"]
            )
            text_logs = logs.gather(1, self.torch.tensor(tokens[1:])[:, None])[:, 0].contiguous()
            self.tensors.update({f"{n}.ids": ids, f"{n}.logs": top_logs, f"{n}.text": text_logs})
            self.said["passages"].append(len(tokens))
            print(f"scored {text['id']}", flush=True)  # noqa: T201


def load_engine(request: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Load the engine by the class that its kind needs; returns it with the facts of the runtime."""
    package = import_module("tensorrt_llm")
    api = import_module("tensorrt_llm.llmapi")
    arguments = dict(request["arguments"])
    # No reuse of blocks: context logits of a prompt with reused blocks lack the reused part.
    cache = {**(arguments.pop("kv_cache_config", None) or {}), "enable_block_reuse": False}
    if request["kind"] == "tensorrt":
        # Since 1.0 the default class is the PyTorch backend's, which refuses an engine.
        llm_class = import_module("tensorrt_llm._tensorrt_engine").LLM
        arguments["gather_generation_logits"] = True
    else:
        llm_class = package.LLM
    cache_config = api.KvCacheConfig(**cache)
    llm = llm_class(
        model=request["model"], skip_tokenizer_init=True, kv_cache_config=cache_config, **arguments
    )
    executes = f"{type(llm).__module__}.{type(llm).__qualname__}"
    return llm, api, {"tensorrt_llm": package.__version__, "class": executes}


def main(path: str) -> None:
    """Ask all questions; any exception ends the process with its traceback, which the caller reads."""
    with open(path, encoding="utf-8") as f:
        request: dict[str, Any] = json.load(f)
    with open(request["asked"], encoding="utf-8") as f:
        question_set: dict[str, Any] = json.load(f)
    torch = import_module("torch")
    llm, api, executed_by = load_engine(request)
    asker = TrtllmAsker(llm, api, torch, question_set, request)
    prompts, most = question_set["prompts"], question_set["continued"]
    with torch.inference_mode():
        for name in ("batch", "again"):
            asker.run(name, prompts, most, alone=False, logits=True)
        asker.run("alone", prompts, most, alone=True, logits=True)
        asker.run("replies", question_set["questions"], question_set["answered"], alone=False, logits=False)
        asker.run("recalls", question_set["recalls"], question_set["answered"], alone=True, logits=False)
        if request["contextLogits"] is None:
            asker.score()
        else:
            asker.said["absent"]["passages"] = request["contextLogits"]
    llm.shutdown()
    executed_by["torch"] = str(torch.__version__)
    import_module("safetensors.torch").save_file(
        asker.tensors, os.path.join(request["output"], "said.safetensors")
    )
    record = {
        "format": 1,
        "material": question_set["material"],
        "kind": request["kind"],
        "by": executed_by,
        **asker.said,
        "limit": asker.limit,
        "longest": asker.longest,
    }
    with open(os.path.join(request["output"], "said.json"), "w", encoding="utf-8") as f:
        json.dump(record, f, indent=1, sort_keys=True)
        f.write("\n")


# mpi4py's workers import this file again: without the guard they would start workers of their own.
if __name__ == "__main__":
    main(sys.argv[1])
