"""Results in the form of NVIDIA TAO: the status file and the pictures of an evaluation."""
