"""Saves and resumes a virtual run bit-exactly.

Between two events, a virtual run is a graph of objects and of coroutines that wait. The graph is
saved as it is (`freeze`) and restored (`thaw`). A coroutine is restored from its journal
(`dbjax.runtime.virtual.journal`). Objects that existed before the run began are not saved but
referred to by names (`names`).
"""

from dbjax.checkpoint.exact.exact import ExactResume as ExactResume
from dbjax.checkpoint.exact.exact import ExactState as ExactState
