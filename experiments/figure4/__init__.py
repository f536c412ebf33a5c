"""Figure 4 of Dean et al. 2012, and what Figure 5 shares with it: methods, options, runs."""
