"""Measuring runs, and what was measured: tables, metrics.json, the page of results."""
