"""The running agent: pipeline, factory, daemon."""
