"""Figure 4, and what Figure 5 shares with it."""
