"""A runtime of mlserver: a network by ONNX Runtime, as `implementation` of a `model-settings.json`."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Network(MLModel):
    """Serves the ONNX file of `parameters.uri`."""

    async def load(self):
        """Load the network."""
        file = self.settings.parameters.uri
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        """Run a request."""
        batch = NumpyCodec.decode_input(payload.inputs[0])
        name = self._session.get_outputs()[0].name
        rows = self._session.run(None, {self._session.get_inputs()[0].name: batch})[0]
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(name, rows)],
        )
