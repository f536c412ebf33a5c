"""Asynchronous training research in JAX.

Paper: Dean et al. 2012, "Large Scale Distributed Deep Networks" (DistBelief).
"""

import jax as _jax
import jaxlib as _jaxlib

from dbjax.checkpoint import Checkpoints as Checkpoints
from dbjax.checkpoint import Every as Every
from dbjax.data.most_frequent import MostFrequent as MostFrequent
from dbjax.jax_version import refuse_wrong_numbers as _refuse_wrong_numbers
from dbjax.replay import Replayed as Replayed
from dbjax.replay import replay as replay
from dbjax.replay import schedule_of_log as schedule_of_log
from dbjax.runtime.cluster import Cluster as Cluster
from dbjax.runtime.cluster import Failure as Failure
from dbjax.runtime.cluster import Link as Link
from dbjax.runtime.cluster import Machine as Machine
from dbjax.runtime.cluster import Outage as Outage
from dbjax.runtime.event_log import EventLog as EventLog
from dbjax.runtime.event_log import Script as Script
from dbjax.runtime.trace import Trace as Trace
from dbjax.schedules.many import Many as Many
from dbjax.schedules.many import run_many as run_many
from dbjax.schedules.schedule import Schedule as Schedule
from dbjax.schedules.timing import schedule as schedule
from dbjax.task import Task as Task
from dbjax.train import Result as Result
from dbjax.train import run as run

_refuse_wrong_numbers(_jax.__version__, _jaxlib.__version__)  # type: ignore[attr-defined]
