"""Stand-in for what needs TensorRT and a GPU in TensorRT Edge-LLM's wheel; everything else is the wheel's
own.

Imported by the stand-in Python (conftest.py) before any program. Real: argument parsers, model and
component selection, the builder and what it writes beside the engine, the server's cache of engines, its
HTTP application. Replaced: TensorRT, by enginix's recorder, and the compiled runtime: answers
are computed by transformers from the model. STANDIN_MISBEHAVE makes the builder or the runtime fail in a
named way.
"""

import functools
import json
import os
import time
from pathlib import Path


def stand_in_build(args):
    from experimental.builder import cli

    bundle, components = cli._resolve_build_selection(args)
    misbehave = os.environ.get("STANDIN_MISBEHAVE", "")
    if misbehave == "oom":
        raise SystemExit("[TRT] [E] Error Code 2: OutOfMemory (CUDA error: out of memory)")
    if misbehave == "tensorrt":
        from tensorrt_edgellm._native.dependencies import require_tensorrt

        require_tensorrt()
    if misbehave == "nothing":
        return
    # NVIDIA's builder itself, over the recorder: all but the compiled engine is what it writes.
    from enginix.kinds.edgellm.execution import direct_graph

    engine = Path(args.engine_dir)
    direct_graph.install_recorder(engine)
    cli._build_one(args, bundle, components[0], object())
    (engine / "llm.engine").write_bytes(b"stand-in: not a TensorRT engine\n")
    (engine / "llm.engine.data").unlink(missing_ok=True)
    config = json.loads((engine / "config.json").read_text())
    if misbehave == "limits":
        config["builder_config"]["max_kv_cache_capacity"] += 1
    if misbehave == "identity":
        del config["checkpoint_identity"]
    if misbehave == "theta":
        config["rope_theta"] *= 2
    (engine / "config.json").write_text(json.dumps(config))


class StandInRuntime:
    """Answers the calls to the compiled runtime during the server's start."""

    def has_draft_model(self):
        return False


def stand_in_load_runtime(self):
    print("stand-in: answers are computed by transformers, not by Edge-LLM", flush=True)
    self._runtime = StandInRuntime()


def stand_in_request(self, messages, params, *, apply_chat_template=True, add_generation_prompt=True, **_):
    (message,) = messages
    if apply_chat_template:
        raise ValueError("stand-in: raw text only")
    return message["content"]


@functools.cache
def loaded(model):
    """Tokenizer and model, in float32."""
    import torch
    import transformers

    torch.set_num_threads(1)
    made = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return transformers.AutoTokenizer.from_pretrained(model), made


def stand_in_complete(self, text, params, tool_config, **_):
    """One greedy answer, as the compiled runtime would hand it out: the end token is left out."""
    import torch

    misbehave = os.environ.get("STANDIN_MISBEHAVE", "")
    if misbehave == "raises":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if misbehave == "hangs":
        time.sleep(100000)
    tokenizer, model = loaded(self.model_dir)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    ids = prompt + 1 if misbehave == "misread" else prompt
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=params.max_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = made.sequences[0, ids.shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    finish = "stop" if tokens[-1] in (ends if isinstance(ends, list) else [ends]) else "length"
    tokens = tokens[:-1] if finish == "stop" else tokens
    if misbehave == "silent":
        tokens, finish = [], "stop"
    if misbehave == "fickle" and time.monotonic_ns() % 2:
        tokens = [5, *tokens[1:]]
    steps = []
    for logits in made.logits[: len(tokens)]:
        best = logits[0].float().log_softmax(-1).topk(params.num_logprobs)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        steps.append([engine.LogprobEntry(t, v, tokenizer.decode([t]), []) for t, v in pairs])
    return engine.CompletionOutput(
        text=tokenizer.decode(tokens),
        token_ids=tokens,
        prompt_tokens=ids.shape[1] + (misbehave == "misread"),
        finish_reason=finish,
        logprobs=steps,
    )


try:
    from experimental.builder import cli
    from experimental.server.runtime import engine
except ImportError:
    pass  # a Python without the wheel: nothing to stand in for
else:
    cli._build = stand_in_build
    engine.LLM._load_runtime = stand_in_load_runtime
    engine.LLM._make_generation_request = stand_in_request
    engine.LLM._complete_prepared_request = stand_in_complete
