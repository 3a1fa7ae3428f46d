"""An ensemble that does nothing: what Triton itself takes for the same tensors through the same three steps.

Its configurations are those of the served repository under other names; its models answer with constants, as
tensors made once. Nothing is tokenized, computed or decoded. What it costs is the least that an ensemble of
Python models can cost on the machine.
"""

from __future__ import annotations

from pathlib import Path

from enginix.triton import config

NAME = "bare"
STEPS = ("preprocessing", "tensorrt_llm", "postprocessing")
# Sent only where a request asks for them.
OPTIONAL = ("cum_log_probs", "output_log_probs", "num_input_tokens", "num_output_tokens")

_MODEL = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils

PROMPT = 128


class TritonPythonModel:
    def initialize(self, args):
        self.made = []
        for output in json.loads(args["model_config"])["output"]:
            name = output["name"]
            if name in {optional!r}:
                continue
            shape = [1] + [1 if d < 0 else int(d) for d in output["dims"]]
            if name == "INPUT_ID":
                shape = [1, PROMPT]
            kind = pb_utils.triton_string_to_numpy(output["data_type"])
            value = np.zeros(shape, kind) if kind != np.object_ else np.full(shape, b" ", kind)
            if name == "REQUEST_INPUT_LEN":
                value[:] = PROMPT
            if name == "STOP_WORDS_IDS":
                value = np.zeros([1, 2, 0], np.int32)
            self.made.append(pb_utils.Tensor(name, value))
"""

_WHOLE = """
    def execute(self, requests):
        answers = []
        for request in requests:
            made = self.made
            wanted = pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN")
            if wanted is not None:
                passed = pb_utils.Tensor("REQUEST_OUTPUT_LEN", wanted.as_numpy())
                made = [t for t in made if t.name() != "REQUEST_OUTPUT_LEN"] + [passed]
            answers.append(pb_utils.InferenceResponse(made))
        return answers
"""

_DECOUPLED = """
    def execute(self, requests):
        work = []
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "request_output_len").as_numpy().item()
            streaming = pb_utils.get_input_tensor_by_name(request, "streaming")
            single = streaming is None or not streaming.as_numpy().item()
            work.append((request.get_response_sender(), count, single))
        for step in range(1, max((count for _, count, _ in work), default=0) + 1):
            for sender, count, single in work:
                last = step == count
                if step > count or (single and not last):
                    continue
                made = [t for t in self.made if t.name() not in ("completion_tokens", "finish_reason")]
                made.append(pb_utils.Tensor("completion_tokens", np.array([[step]], np.int32)))
                reason = b"length" if last else b""
                made.append(pb_utils.Tensor("finish_reason", np.array([[reason]], np.object_)))
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
                sender.send(pb_utils.InferenceResponse(made), flags=flags)
"""


def write(repository: Path, out: Path) -> list[Path]:
    """Model directories that do nothing in place of a repository's; to be put beside it.

    Args:
        repository: of kind ``reference``.
        out: an existing directory.
    """
    found = []
    for step in (*STEPS, "ensemble"):
        described = config.read(repository / step / config.FILE)
        described.name = NAME if step == "ensemble" else f"{NAME}_{step}"
        described.parameters.clear()
        for inner in described.ensemble_scheduling.step:
            inner.model_name = f"{NAME}_{inner.model_name}"
        directory = out / described.name
        (directory / "1").mkdir(parents=True)
        (directory / config.FILE).write_text(config.render(described), "utf-8")
        if step != "ensemble":
            code = _MODEL.replace("{optional!r}", repr(OPTIONAL))
            code += _DECOUPLED if step == "tensorrt_llm" else _WHOLE
            (directory / "1" / "model.py").write_text(code, "utf-8")
        found.append(directory)
    return found
