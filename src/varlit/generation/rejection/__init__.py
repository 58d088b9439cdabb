"""Rejection sampling: draw more than is wanted, keep what a classifier knows best."""
