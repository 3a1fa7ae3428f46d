"""A model that does nothing: what Triton itself takes for the tensors of ``ensemble``.

Its configuration is that of the served model under another name; it answers with constants, as tensors made
once. Nothing is tokenized, computed or decoded. What it costs is the least that a Python model of this
interface can cost on the machine.
"""

from __future__ import annotations

from pathlib import Path

from enginix.triton import config

NAME = "bare"
MODEL = "ensemble"
# Sent only where a request asks for them.
OPTIONAL = ("cum_log_probs", "output_log_probs", "num_input_tokens", "num_output_tokens")

_CODE = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.made = {}
        for output in json.loads(args["model_config"])["output"]:
            if output["name"] in OPTIONAL:
                continue
            kind = pb_utils.triton_string_to_numpy(output["data_type"])
            value = np.zeros([1, 1], kind) if kind != np.object_ else np.full([1, 1], b" ", kind)
            self.made[output["name"]] = pb_utils.Tensor(output["name"], value)

    def execute(self, requests):
        work = []
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "max_tokens").as_numpy().item()
            stream = pb_utils.get_input_tensor_by_name(request, "stream")
            single = stream is None or not stream.as_numpy().item()
            work.append((request.get_response_sender(), count, single))
        for step in range(1, max((count for _, count, _ in work), default=0) + 1):
            for sender, count, single in work:
                last = step == count
                if step > count or (single and not last):
                    continue
                made = dict(self.made)
                made["completion_tokens"] = pb_utils.Tensor("completion_tokens", np.array([[step]], np.int32))
                reason = b"length" if last else b""
                made["finish_reason"] = pb_utils.Tensor("finish_reason", np.array([[reason]], np.object_))
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
                sender.send(pb_utils.InferenceResponse(list(made.values())), flags=flags)
"""


def write(repository: Path, out: Path) -> list[Path]:
    """The model directory, to be put beside a repository's.

    Args:
        repository: of kind ``reference``.
        out: an existing directory.
    """
    described = config.read_pbtxt(repository / MODEL / config.FILE)
    described.name = NAME
    described.parameters.clear()
    directory = out / NAME
    (directory / "1").mkdir(parents=True)
    (directory / config.FILE).write_text(config.render_pbtxt(described), "utf-8")
    code = _CODE.replace("OPTIONAL", repr(OPTIONAL))
    (directory / "1" / "model.py").write_text(code, "utf-8")
    return [directory]
