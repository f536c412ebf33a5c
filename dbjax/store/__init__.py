"""The sharded parameter store."""

from dbjax.store.accrued import Accrued as Accrued
from dbjax.store.chain import require_backups as require_backups
from dbjax.store.delays import Delays as Delays
from dbjax.store.partition import Partition as Partition
from dbjax.store.partition import partition as partition
from dbjax.store.shard import Push as Push
from dbjax.store.shard import Report as Report
from dbjax.store.shard import ServerRule as ServerRule
from dbjax.store.shard import Shard as Shard
from dbjax.store.shard import ShardState as ShardState
from dbjax.store.shard import Snapshot as Snapshot
from dbjax.store.shard import server_rule as server_rule
from dbjax.store.sharded import Fetched as Fetched
from dbjax.store.sharded import Sharded as Sharded
