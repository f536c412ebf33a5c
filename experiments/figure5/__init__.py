"""Figure 5 of Dean et al. 2012: `python -m experiments.figure5`."""
