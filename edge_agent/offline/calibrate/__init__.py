"""INT8 calibration, accuracy gate and match threshold."""
