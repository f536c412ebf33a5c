"""The books of one evaluation, under drawn deaths, copies and failures."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dbjax.algorithms.sandblaster.work_queue import WorkQueue


@settings(max_examples=60, deadline=None)
@given(data=st.data(), portions=st.integers(1, 12), replicas=st.integers(1, 4),
       send_every=st.integers(1, 3))  # fmt: skip
def test_every_portion_is_delivered_once_whoever_dies(data, portions, replicas, send_every):
    plan = {r: list(range(portions))[r::replicas] for r in range(replicas)}
    batch = WorkQueue({"only": tuple(range(portions))}, plan, send_every)
    working = {r: [] for r in range(replicas)}
    sending = {r: [] for r in range(replicas)}
    counted = []
    for _ in range(400):
        if batch.done():
            break
        replica = data.draw(st.integers(0, replicas - 1))
        action = data.draw(st.sampled_from(["work", "work", "work", "send", "copy",
                                            "die", "stuck", "fail"]))  # fmt: skip
        if action == "die" and len(counted) < portions:
            batch.lost(replica, sending[replica])
            working[replica], sending[replica] = [], []
        elif action == "copy" and batch.left() == 0:
            for other in range(replicas):
                for portion in working[other]:
                    if batch.copy(replica, portion):
                        working[replica].append(portion)
        elif action == "stuck" and working[replica]:
            batch.spare(replica)
        elif action == "fail" and working[replica]:
            batch.not_computed(replica, working[replica].pop())
        elif action == "send" and sending[replica]:
            done = sending[replica].pop()
            if batch.delivered(done):
                counted += done
        elif working[replica]:
            batch.computed(replica, working[replica].pop(0))
        elif (again := batch.take_again()) is not None:
            sending[replica].append(again)
        elif (portion := batch.take(replica)) is not None or (
            portion := batch.take_spare(replica)
        ) is not None:
            working[replica].append(portion)
        for one in range(replicas):
            sending[one] += batch.send(one, everything=not batch.left() and not working[one])
    while not batch.done():  # failures have stopped
        for replica in range(replicas):
            while working[replica]:
                batch.computed(replica, working[replica].pop())
            if (portion := batch.take(replica)) is not None:
                working[replica].append(portion)
            if (again := batch.take_again()) is not None:
                sending[replica].append(again)
            sending[replica] += batch.send(replica, everything=not batch.left())
            while sending[replica]:
                done = sending[replica].pop()
                if batch.delivered(done):
                    counted += done
    assert sorted(counted) == list(range(portions))
