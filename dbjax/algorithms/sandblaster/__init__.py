"""Sandblaster: distributed batch optimisation (section 4.2, Algorithm 1.2)."""

from dbjax.algorithms.sandblaster.coordinator import Config as Config
from dbjax.algorithms.sandblaster.coordinator import coordinator as coordinator
from dbjax.algorithms.sandblaster.coordinator import program as program
