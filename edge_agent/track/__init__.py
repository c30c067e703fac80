"""From boxes to tracks."""
