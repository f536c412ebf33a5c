"""Optimisers, which do not depend on the rest of dbjax.

Server rules are optax-style gradient transformations. Batch methods (L-BFGS, conjugate gradients,
gradient descent) are coroutines that issue commands on named vectors and receive only scalars
(see `dbjax.optim.space`). The same code therefore runs on the shards of a parameter server, on a
JAX pytree and on NumPy arrays.
"""

from dbjax.optim.adagrad import DownpourAdagradState as DownpourAdagradState
from dbjax.optim.adagrad import downpour_adagrad as downpour_adagrad
from dbjax.optim.descent import ConjugateGradients as ConjugateGradients
from dbjax.optim.descent import GradientDescent as GradientDescent
from dbjax.optim.elementwise import require_elementwise as require_elementwise
from dbjax.optim.lbfgs import Lbfgs as Lbfgs
from dbjax.optim.minimise import minimise as minimise
from dbjax.optim.optax_lbfgs import lbfgs as lbfgs
from dbjax.optim.optax_lbfgs import scale_by_vector_free_lbfgs as scale_by_vector_free_lbfgs
from dbjax.optim.space import Combine as Combine
from dbjax.optim.space import Dots as Dots
from dbjax.optim.space import Multiply as Multiply
from dbjax.optim.space import Space as Space
from dbjax.optim.state import Method as Method
from dbjax.optim.state import State as State
from dbjax.optim.state import Stops as Stops
from dbjax.optim.wolfe import Wolfe as Wolfe
