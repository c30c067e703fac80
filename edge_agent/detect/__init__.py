"""Where the people are in a frame."""
