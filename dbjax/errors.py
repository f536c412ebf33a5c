"""The errors that are not a user's mistake (those are ValueError and TypeError)."""


class DbjaxError(Exception):
    """Any failure of a running program."""


class ServiceError(DbjaxError):
    """A service's method raised; says which, where and when; chained from the cause."""


class DeadlockError(DbjaxError):
    """Nothing can happen any more, yet some mains still wait; names each of them."""


class ReplayError(DbjaxError):
    """A run does not do again what its log says."""


class StateLost(DbjaxError):
    """A shard was restored from a checkpoint, and does not know what it is asked for."""


class NodeDied(DbjaxError):
    """A node died: that of an awaited main for good, or that of a called service."""
