"""Costs of compiled programs: FLOPs, memory traffic and collectives, and the time they take."""
