"""A Python-based backend for Triton, in place of its C++ backend of the same name: ONNX Runtime on the CPU.

A file `fault.json` in the folder of a version makes it do wrong: `{"delay_s": 1, "rows": 3, "nan": true}`.
"""

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """Serves `model.onnx` of the model's folder."""

    @staticmethod
    def auto_complete_config(config):
        """Return what the repository says."""
        return config

    def initialize(self, args):
        """Load the network."""
        config = json.loads(args["model_config"])
        self._folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        threads = config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value", "0")
        options.intra_op_num_threads = int(threads)
        file = self._folder / (config.get("default_model_filename") or "model.onnx")
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]

    def execute(self, requests):
        """Run the requests in one batch."""
        inputs = [triton.get_input_tensor_by_name(one, self._input).as_numpy() for one in requests]
        batch = np.concatenate(inputs) if len(inputs) > 1 else inputs[0]
        rows = self._session.run([self._output], {self._input: batch})[0]
        rows = self._spoilt(rows)
        answers, at = [], 0
        for one in inputs:
            part = np.ascontiguousarray(rows[at : at + len(one)])
            answers.append(triton.InferenceResponse([triton.Tensor(self._output, part)]))
            at += len(one)
        return answers

    def _spoilt(self, rows):
        file = self._folder / "fault.json"
        if not file.is_file():
            return rows
        fault = json.loads(file.read_text())
        time.sleep(fault.get("delay_s", 0))
        if fault.get("nan"):
            rows = rows.copy()
            rows[0, 0] = np.nan
        return rows[: fault.get("rows", len(rows))]
