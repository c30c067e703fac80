"""The running agent: opening of the stages, pipeline, commands, telemetry loop."""
