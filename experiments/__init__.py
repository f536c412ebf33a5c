"""Commands: run one experiment, compare methods, draw."""
