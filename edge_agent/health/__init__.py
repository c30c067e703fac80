"""State of the device and of the service: telemetry, watchdog, governor, status."""
