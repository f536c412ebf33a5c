"""What the rows of a run say of deaths, by hand."""

import math

from dbjax.chaos import Kill, kills


def test_a_node_is_back_when_it_returns_itself():
    rows = [
        {"time_s": time_s, "node": node, "event": event}
        for time_s, node, event in (
            (1.0, "shard/0", "died"), (2.0, "replica/1", "died"), (2.5, "replica/1", "returned"),
            (4.0, "shard/0", "returned"), (5.0, "shard/0", "died"), (6.0, "replica/2", "died"),
            (6.5, "shard/0", "returned"),
        )
    ]  # fmt: skip
    rows.insert(2, {"time_s": 2.2, "node": "evaluator", "updates": 3})
    assert kills(rows) == [
        Kill("shard/0", 1.0, 3.0),
        Kill("replica/1", 2.0, 0.5),
        Kill("shard/0", 5.0, 1.5),
        Kill("replica/2", 6.0, math.inf),
    ]
