"""What of a run's rows a checkpoint keeps."""

from dbjax.checkpoint.state import rows_to_keep


def row(node, **values):
    return {"node": node, **values}


def test_of_single_losses_the_first_the_latest_and_each_replicas_last_stay():
    rows = [
        row("evaluator", updates=0),
        row("replica/0", step=0, loss=5.0),  # the first of all
        row("replica/0", step=1, loss=6.0),
        row("replica/1", step=0, loss=4.0),  # the last of this one
        row("shard/0", event="died"),
        row("replica/0", step=2, loss=3.0),
        row("replica/0", step=3, loss=2.0),
        row("coordinator", step=1, loss=9.0),
        row("replica/0", step=4, loss=1.0),
    ]
    kept = rows_to_keep(rows, 2)
    assert list(kept) == [rows[0], rows[1], rows[3], rows[4], *rows[6:]]
    assert list(rows_to_keep(rows, 100)) == rows
    assert [r.get("loss") for r in rows_to_keep(rows, 0)] == [None, 5.0, 4.0, None, 9.0, 1.0]
