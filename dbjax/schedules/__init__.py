"""Schedules: the timing of a run as data, and its arithmetic as one compiled program."""
