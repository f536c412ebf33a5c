"""Figure 3 of Dean et al. 2012, from compiled programs: `python -m experiments.figure3`."""
