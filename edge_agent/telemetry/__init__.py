"""Temperatures, power, load and memory of the device."""
