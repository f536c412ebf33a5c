"""The two ways in which the arithmetic of a run is done: on the engine, and compiled."""
