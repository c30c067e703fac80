"""Makes networks ready for engines: reads, checks and rewrites ONNX."""
