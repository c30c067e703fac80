"""Export for NVIDIA DeepStream: the network, settings of nvinfer, nvtracker and nvinferserver, a README."""
