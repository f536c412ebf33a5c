"""The parameter server: shards that serve stale parameters, and their clients (section 4.1)."""

from dbjax.parameter_server.accumulation import AccumulatedGradient as AccumulatedGradient
from dbjax.parameter_server.client import Fetched as Fetched
from dbjax.parameter_server.client import ParameterServer as ParameterServer
from dbjax.parameter_server.client import Restore as Restore
from dbjax.parameter_server.failover_client import require_backups as require_backups
from dbjax.parameter_server.gradient_fn import GradientFn as GradientFn
from dbjax.parameter_server.optimizer import ServerRule as ServerRule
from dbjax.parameter_server.optimizer import server_rule as server_rule
from dbjax.parameter_server.partition import Partition as Partition
from dbjax.parameter_server.partition import partition_params as partition_params
from dbjax.parameter_server.session import ReplicaSession as ReplicaSession
from dbjax.parameter_server.session import SessionOptions as SessionOptions
from dbjax.parameter_server.shard import Push as Push
from dbjax.parameter_server.shard import Report as Report
from dbjax.parameter_server.shard import Shard as Shard
from dbjax.parameter_server.shard import ShardState as ShardState
from dbjax.parameter_server.shard import Snapshot as Snapshot
from dbjax.parameter_server.staleness import StalenessAccounting as StalenessAccounting
