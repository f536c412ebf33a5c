"""Optax-style transforms; usable with plain optax, without the rest of dbjax."""

from dbjax.optim.adagrad import DownpourAdagradState as DownpourAdagradState
from dbjax.optim.adagrad import downpour_adagrad as downpour_adagrad
from dbjax.optim.elementwise import require_elementwise as require_elementwise
