"""The precision that a network computes in: FP32 as exported, FP16, or calibrated INT8."""
