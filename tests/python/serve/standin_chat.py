"""STAND-IN for NVIDIA's models and its executor: answers with the text that the executor was given.

Each computes what its name promises by the tokenizers library; the executor echoes its tokens. So the answer
shows what of a request reaches the executor, special tokens and all.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


def tensor(request, name):
    found = pb_utils.get_input_tensor_by_name(request, name)
    return None if found is None else found.as_numpy()


def text(value):
    return np.array([[value.encode()]], np.object_)


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        self.name = self.config["name"]
        directory = self.config["parameters"]["tokenizer_dir"]["string_value"]
        self.tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
        self.decoupled = self.config["model_transaction_policy"]["decoupled"]

    def execute(self, requests):
        unknown = {t.name() for r in requests for t in r.inputs()} & {"messages", "MESSAGES"}
        assert not unknown, f"NVIDIA's model got {unknown}"
        answers = [pb_utils.InferenceResponse(self.answer(r)) for r in requests]
        if not self.decoupled:
            return answers
        for request, answer in zip(requests, answers):  # noqa: B905
            sender = request.get_response_sender()
            sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None

    def answer(self, request):
        if self.name == "preprocessing":
            return self.preprocessed(tensor(request, "QUERY"))
        if self.name == "postprocessing":
            return [pb_utils.Tensor("OUTPUT", text(self.decoded(tensor(request, "TOKENS_BATCH"))))]
        if self.config["max_batch_size"] == 0:  # llmapi
            ids = self.tokenizer.encode(tensor(request, "text_input")[0].decode()).ids
            return [pb_utils.Tensor("text_output", np.array([self.decoded(ids).encode()], np.object_))]
        if self.name == "tensorrt_llm_bls":
            return [pb_utils.Tensor("text_output", text(self.asked(request)))]
        ids = tensor(request, "input_ids").reshape(1, 1, -1).astype(np.int32)
        length = np.array([[ids.size]], np.int32)
        return [pb_utils.Tensor("output_ids", ids), pb_utils.Tensor("sequence_length", length)]

    def decoded(self, ids):
        return self.tokenizer.decode(np.array(ids).reshape(-1).tolist(), skip_special_tokens=False)

    def preprocessed(self, query):
        ids = self.tokenizer.encode(query[0, 0].decode()).ids
        shapes = {o["name"]: o for o in self.config["output"]}
        found = {"INPUT_ID": np.array([ids], np.int32), "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32)}
        for name, output in shapes.items():
            shape = [1, *(max(1, int(d)) for d in output["dims"])]
            found.setdefault(name, np.zeros(shape, pb_utils.triton_string_to_numpy(output["data_type"])))
        found["REQUEST_OUTPUT_LEN"] = np.array([[4]], np.int32)
        return [pb_utils.Tensor(n, v) for n, v in found.items()]

    def asked(self, request):
        """As NVIDIA's does: the text, unread, to the model preprocessing."""
        inputs = [
            pb_utils.Tensor("QUERY", tensor(request, "text_input")),
            pb_utils.Tensor("REQUEST_OUTPUT_LEN", np.array([[4]], np.int32)),
        ]
        made = pb_utils.InferenceRequest(
            model_name="preprocessing", inputs=inputs, requested_output_names=["INPUT_ID"]
        )
        response = made.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        return self.decoded(pb_utils.get_output_tensor_by_name(response, "INPUT_ID").as_numpy())
