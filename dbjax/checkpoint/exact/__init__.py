"""A virtual run, taken up where it stood: every bit of it.

Between two events a virtual run is a graph of objects, and coroutines that wait. The graph is
written down as it is (`freeze`, `thaw`), what a coroutine needs is in its journal
(`dbjax.runtime.virtual.journal`), and what the program was built of has a name (`names`).
"""

from dbjax.checkpoint.exact.exact import ExactResume as ExactResume
from dbjax.checkpoint.exact.exact import ExactState as ExactState
