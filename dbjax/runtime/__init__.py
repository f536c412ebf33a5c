"""Where algorithms run: see `base` for the seam and its rules."""

from dbjax.runtime.base import AsTheyCome as AsTheyCome
from dbjax.runtime.base import Future as Future
from dbjax.runtime.base import Handle as Handle
from dbjax.runtime.base import Node as Node
from dbjax.runtime.base import Runtime as Runtime
from dbjax.runtime.base import all_of as all_of
from dbjax.runtime.base import first_of as first_of
from dbjax.runtime.base import ready as ready
from dbjax.runtime.cluster import Cluster as Cluster
from dbjax.runtime.cluster import Failure as Failure
from dbjax.runtime.cluster import Link as Link
from dbjax.runtime.cluster import Machine as Machine
from dbjax.runtime.cluster import Outage as Outage
from dbjax.runtime.threads import ThreadsRuntime as ThreadsRuntime
from dbjax.runtime.virtual import VirtualRuntime as VirtualRuntime
