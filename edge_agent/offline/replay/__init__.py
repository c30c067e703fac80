"""Makes recorded decisions again, with the same or other settings, and compares."""
