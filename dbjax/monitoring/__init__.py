"""Monitoring of a run: evaluation, metrics, warnings, signals and fault injection."""
