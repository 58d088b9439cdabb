"""Objectives of both stages: what training minimises, and nothing about how.

May import models and ops; never metrics, data, viz or generation.
"""
