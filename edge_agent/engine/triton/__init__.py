"""Networks on an inference server that speaks KServe v2 over gRPC, as Triton and mlserver do."""
