"""Networks of the agent in the form that other programs load: ONNX, a model repository of Triton."""
