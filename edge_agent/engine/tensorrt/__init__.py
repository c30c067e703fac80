"""TensorRT backend: builds plans for the GPU of this device and runs them."""
