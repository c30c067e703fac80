"""The store of TensorRT plans, and the record of which engine is active."""
