"""Applications that need no running agent: data sets, training, evaluation, calibration, benchmarks, demo."""
