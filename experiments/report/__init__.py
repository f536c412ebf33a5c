"""An HTML page about one or several runs: `python -m experiments.report`."""
