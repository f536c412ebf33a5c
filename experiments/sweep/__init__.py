"""Searches over config fields: `python -m experiments.sweep`, or `run.sweep` from Python."""
