"""Sweeps over fields of a config: `python -m experiments.sweep`, or `run.sweep` from Python."""
