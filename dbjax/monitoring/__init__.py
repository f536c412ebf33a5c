"""What watches a run: evaluation, metrics, warnings, signals, injected faults."""
