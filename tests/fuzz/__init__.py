"""Fuzzing: properties by hypothesis, and files changed at random."""
