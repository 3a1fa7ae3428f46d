"""Ask an engine of kind ``edgellm`` by its own server, on loopback.

The server takes text and returns the generated tokens with their most likely alternatives; it does not score
a given text. The answers are written to said.json and said.safetensors, which
enginix.evaluation.engine_judgement.answer_record reads.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from enginix import console, manifest, process
from enginix.errors import GateError, MachineError, ManifestError
from enginix.evaluation.engine_protocol import answers_origin, engine_questions
from enginix.evaluation.engine_protocol.engine_questions import EngineQuestions, TokenizedText
from enginix.files import dump_json, write_text
from enginix.kinds.edgellm.serve import ServerCommand, prepare_server
from enginix.ports import choose_loopback_port
from enginix.process_group import signal_group
from enginix.work_directory import new_directory

TOGETHER = 4  # requests at once: what its queue takes by default
MARK = "stand-in: "
NO_SCORES = (
    "Edge-LLM's server gives log-probabilities of generated tokens alone, and no build option changes that"
)
_VERSIONS = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions() "
    "if d.metadata['Name'] in ('tensorrt-edgellm', 'tensorrt', 'tensorrt-cu13')}))"
)


def ask_edgellm_engine(
    engine: Path,
    model: Path,
    questions_file: Path,
    out: Path,
    *,
    python: Path | None = None,
    driver: Path | None = None,
    stall: float = 1800.0,
) -> None:
    """Ask an engine all questions; ``out`` is complete at the end, or absent.

    Args:
        python: the Python that has the wheel and TensorRT; None takes this one.
        driver: directory of the GPU driver in place of the machine's.
        stall: seconds without an answer after which the server counts as hung.

    Raises:
        ManifestError: not an Edge-LLM engine that the server takes, or one of another model.
        MachineError: the wheel or TensorRT is missing, or the server ended.
        GateError: the server answered with an error, or did not answer.
    """
    from safetensors.numpy import save_file

    engine_manifest = manifest.read_manifest(engine, "engine")
    if engine_manifest.kind != "edgellm":
        raise ManifestError(
            f"an engine of kind {engine_manifest.kind}", where=engine, fix="pass one of kind edgellm"
        )
    question_set = engine_questions.read_engine_questions(questions_file)
    limits = engine_manifest.options.get("limits", {})
    try:
        limit, longest = int(limits["maxKvCacheCapacity"]), int(limits["maxInputLen"])
    except (KeyError, TypeError, ValueError) as e:
        raise ManifestError(f"limits are {limits!r}", where=engine, fix="build this engine again") from e
    with tempfile.TemporaryDirectory(prefix="enginix-") as name, new_directory(out) as partial:
        state, key = Path(name), secrets.token_hex(16)
        (state / "key").touch(0o600)
        (state / "key").write_text(key + "\n")
        port = choose_loopback_port()
        (state / "s").mkdir()
        command = prepare_server(
            engine, model, state / "s", port=port, key_file=state / "key", python=python, driver=driver
        )
        versions = process.run_program([python or sys.executable, "-c", _VERSIONS], cwd=state)
        console.print_message(f"asking {engine_manifest.name} by its own server")
        with _run_server(command, state / "log", port, key, stall) as ask_one:
            answers, tensors = _ask_everything(ask_one, question_set, limit, longest)
        executed_by = {
            **json.loads(versions.stdout),
            "runtime": engine_manifest.runtime,
            "server": "tensorrt-edgellm-serve",
            **_find_stand_in_mark(state / "log"),
        }
        material = question_set.material
        record = {"format": 1, "material": material, "kind": "edgellm", "by": executed_by, **answers}
        save_file(tensors, partial / "said.safetensors")
        write_text(partial / "said.json", dump_json(record))
        answers_origin.write_answers_origin(engine, partial)


def _ask_everything(
    ask_one: Any, questions: EngineQuestions, limit: int, longest: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the record says of the answers, and the tensors beside it."""
    import numpy as np

    misread, tensors = dict[str, str](), dict[str, Any]()

    def run(texts: Sequence[TokenizedText], most: int, *, workers: int = TOGETHER, keep: bool = False) -> Any:
        def ask(numbered_text: tuple[int, TokenizedText]) -> dict[str, Any] | None:
            n, text = numbered_text
            length = len(text.tokens)
            token_limit = min(most, limit - length) if length <= longest else 0
            if text.text is None or token_limit < 1:
                return None
            answer = ask_one(text.text, token_limit, questions.next)
            if answer["prompt"] != length:
                misread[text.id] = f"{answer['prompt']} tokens, {length} by the model's tokenizer"
            if keep and answer["ids"]:
                tensors[f"next.{n}.ids"] = np.asarray(answer["ids"], np.int32)
                tensors[f"next.{n}.logs"] = np.asarray(answer["logs"], np.float32)
            return {"tokens": answer["tokens"], "finish": answer["finish"]}

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(ask, enumerate(texts)))

    runs = {
        "batch": run(questions.prompts, questions.continued, keep=True),
        "again": run(questions.prompts, questions.continued),
        "alone": run(questions.prompts, questions.continued, workers=1),
        "replies": run(questions.questions, questions.answered),
        "recalls": run(questions.recalls, questions.answered, workers=1),
    }
    texts = [f"{text}: {why}" for text, why in sorted(misread.items())]
    absent = {"passages": NO_SCORES}
    record = {"runs": runs, "passages": [], "absent": absent, "misread": texts}
    return {**record, "limit": limit, "longest": longest}, tensors


def _find_stand_in_mark(log: Path) -> dict[str, str]:
    """Return the mark of a stand-in for NVIDIA's compiled runtime from the log; empty for the real one."""
    for line in log.read_text("utf-8", "replace").splitlines():
        if line.startswith(MARK):
            return {"stand-in": line.removeprefix(MARK)[:200]}
    return {}


@contextlib.contextmanager
def _run_server(command: ServerCommand, log: Path, port: int, key: str, stall: float) -> Iterator[Any]:
    """Run the server, and yield a function that sends it one request."""
    with log.open("wb") as sink:
        child = subprocess.Popen(
            list(command.words),
            env=dict(command.environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"

    def log_lines() -> list[str]:
        lines = log.read_text("utf-8", "replace").replace(key, "…").splitlines()
        # Access log lines do not explain a failure.
        return [line[:300] for line in lines if '"POST /' not in line and '"GET /' not in line]

    def tail() -> str:
        return "it said:\n    " + ("\n    ".join(log_lines()[-8:]) or "no output")

    def call(path: str, body: dict[str, Any] | None, seconds: float) -> Any:
        request = urllib.request.Request(
            address + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return json.load(response)

    def ask_one(text: str, most: int, count: int) -> dict[str, Any]:
        # No cache: an earlier request must not influence an answer.
        body = {
            "messages": [{"role": "user", "content": text}],
            "apply_chat_template": False,
            "add_generation_prompt": False,
            "temperature": 0,
            "max_tokens": most,
            "logprobs": True,
            "top_logprobs": count,
            "reuse_context": False,
            "cache_generated_tokens": False,
        }
        try:
            return _parse_completion(call("/v1/chat/completions", body, stall), count)
        except urllib.error.HTTPError as e:
            why = e.read(400).decode("utf-8", "replace")
            raise GateError(f"the engine failed while answering: {e.code}: {why}", fix=tail()) from e
        except TimeoutError as e:
            raise GateError(f"no answer for {int(stall)} s: it hangs", fix=tail()) from e
        except (OSError, ValueError, http.client.HTTPException) as e:  # the latter: ended within an answer
            raise GateError(f"the server is gone: {e}", fix=tail()) from e

    try:
        begun = time.monotonic()
        while True:
            if child.poll() is not None:
                raise MachineError(f"the server ended with status {child.returncode}", fix=tail())
            if time.monotonic() - begun > stall:
                raise MachineError(f"the server is not ready after {int(stall)} s", fix=tail())
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                call("/health/ready", None, 10)
                break
            time.sleep(0.2)
        yield ask_one
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal_group(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(20)
                break
        for line in log_lines()[:40]:
            console.print_message(f"server: {line}")


def _parse_completion(answer: Any, count: int) -> dict[str, Any]:
    """Return tokens and log-probabilities of one answer of the server.

    Raises:
        GateError: the answer does not have the documented shape.
    """
    try:
        (choice,) = answer["choices"]
        steps = (choice.get("logprobs") or {}).get("content") or []
        finish, usage = choice["finish_reason"], answer["usage"]
        tokens = [int(step["token_id"]) for step in steps]
        completion_tokens, prompt = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
        tops = [[(int(t["token_id"]), float(t["logprob"])) for t in step["top_logprobs"]] for step in steps]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise GateError(f"an answer of another shape: {type(e).__name__}: {e}") from e
    if finish not in ("stop", "length"):
        raise GateError(f"unknown finish_reason {finish!r} in an answer")
    if len(tokens) != completion_tokens:
        raise GateError(f"usage reports {completion_tokens} tokens, the response lists {len(tokens)}")
    whole = all(len(top) == count for top in tops)
    return {
        "tokens": tokens,
        "finish": finish,
        "prompt": prompt,
        "ids": [[t for t, _ in top] for top in tops] if whole else [],
        "logs": [[v for _, v in top] for top in tops] if whole else [],
    }
