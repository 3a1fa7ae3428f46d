"""STAND-IN for NVIDIA's models: answers every request with zeros and the word "stand-in".

It proves that Triton loads the configurations and routes every tensor through them. It computes nothing.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        self.decoupled = self.config.get("model_transaction_policy", {}).get("decoupled", False)

    def answer(self):
        batched = [1] if self.config["max_batch_size"] else []
        tensors = []
        for output in self.config["output"]:
            shape = batched + [max(1, int(d)) for d in output["dims"]]
            dtype = pb_utils.triton_string_to_numpy(output["data_type"])
            empty = np.full(shape, b"stand-in", np.object_) if dtype is np.object_ else np.zeros(shape, dtype)
            tensors.append(pb_utils.Tensor(output["name"], empty))
        return pb_utils.InferenceResponse(tensors)

    def execute(self, requests):
        if not self.decoupled:
            return [self.answer() for _ in requests]
        for request in requests:
            sender = request.get_response_sender()
            sender.send(self.answer(), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
