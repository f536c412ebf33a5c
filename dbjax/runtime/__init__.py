"""Runtimes, on which algorithms run; `dbjax.runtime.interface` has the interface and its rules."""

from dbjax.runtime.cluster import Cluster as Cluster
from dbjax.runtime.cluster import Failure as Failure
from dbjax.runtime.cluster import Link as Link
from dbjax.runtime.cluster import Machine as Machine
from dbjax.runtime.cluster import Outage as Outage
from dbjax.runtime.interface import ArrivalQueue as ArrivalQueue
from dbjax.runtime.interface import Future as Future
from dbjax.runtime.interface import Handle as Handle
from dbjax.runtime.interface import Node as Node
from dbjax.runtime.interface import Runtime as Runtime
from dbjax.runtime.interface import all_of as all_of
from dbjax.runtime.interface import first_of as first_of
from dbjax.runtime.interface import ready as ready
from dbjax.runtime.threads import ThreadsRuntime as ThreadsRuntime
from dbjax.runtime.virtual import VirtualRuntime as VirtualRuntime
