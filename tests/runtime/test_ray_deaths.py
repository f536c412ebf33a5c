"""Deaths on Ray: those that happen, and those that are made true."""

import os
import signal
import threading
import time

import optax
import pytest

import dbjax
from dbjax.algorithms import downpour
from dbjax.errors import NodeDied
from dbjax.parameter_server.failover_client import serve_replicated
from dbjax.parameter_server.replication import ReplicatedService
from dbjax.runtime.ray import RayOptions
from tests.processes import LIMIT_S
from tests.runtime.services import Counter, Log
from tests.test_conformance import TASK

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


def test_the_dead_come_back(runtime):
    async def main(node, nodes_can_fail, other):
        _, pid = await nodes_can_fail.call(Log.life)
        await nodes_can_fail.call(Log.say, "forgotten")
        hanging = nodes_can_fail.call(Log.wait)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(NodeDied, match="mortal died before it answered wait"):
            await hanging
        await nodes_can_fail.up()
        life, new = await nodes_can_fail.call(Log.life)
        assert life == 1
        assert new != pid
        assert await nodes_can_fail.call(Log.words) == []
        return await other.call(Log.words)

    async def victim(node, log):
        await log.call(Log.say, node.incarnation)
        if node.incarnation == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    log, nodes_can_fail = runtime.serve("log", Log), runtime.serve("mortal", Log)
    ended = runtime.spawn("main", main, nodes_can_fail, log)
    runtime.spawn("victim", victim, log)
    runtime.run(until_s=LIMIT_S)
    ended.result()
    assert log.call(Log.words).result() == [0, 1]
    events = [(row["node"], row["event"]) for row in runtime._trace.rows if "event" in row]
    assert sorted(events) == [(name, what) for name in ("mortal", "victim")
                              for what in ("died", "returned")]  # fmt: skip


@pytest.mark.parametrize(("backups", "counted"), [(0, 20), (1, 60)])
def test_a_backup_loses_nothing(runtime, backups, counted):
    async def main(node, chain):
        for number in range(1, 21):
            last = await chain.call(Counter.add, number)
        os.kill(await chain.call(Counter.pid), signal.SIGKILL)
        for number in range(21, 41):
            last = await chain.call(Counter.add, number)
        if backups:  # the one that came back has everything, when the other one dies
            again = node.service("counter")
            await again.up()
            while await again.call(ReplicatedService.observe, "state", (), {}, True) != (40, 40):
                await node.sleep(0.05)
            os.kill(await chain.call(Counter.pid), signal.SIGKILL)
            for number in range(41, 61):
                last = await chain.call(Counter.add, number)
        return last

    chain = serve_replicated(runtime, "counter", backups, Counter)
    ended = runtime.spawn("main", main, chain)
    runtime.run(until_s=LIMIT_S)
    assert ended.result() == counted
    events = [(row["node"], row["event"]) for row in runtime._trace.rows if "event" in row]
    assert events[:2] == [("counter", "died"), ("counter", "returned")]


def test_who_is_given_up_dies(runtime):
    """A connection between two that live breaks: what callers are told becomes true."""

    async def main(node, log):
        _, pid = await log.call(Log.life)
        hanging = log.call(Log.wait)
        await give_up(log)
        with pytest.raises(NodeDied, match="log died before it answered wait"):
            await hanging
        await log.up()
        return pid, await log.call(Log.life)

    async def other(node, log):
        while await life(log) != 1:  # it is told too, though its own connection is whole
            await node.sleep(0.02)

    log = runtime.serve("log", Log)
    ended = runtime.spawn("main", main, log)
    runtime.spawn("other", other, log)
    assert runtime.run(until_s=LIMIT_S) < LIMIT_S
    pid, (incarnation, new) = ended.result()
    assert incarnation == 1
    assert new != pid
    require_end(pid)
    events = [(row["node"], row["event"]) for row in runtime._trace.rows if "event" in row]
    assert events == [("log", "died"), ("log", "returned")]


async def give_up(service):
    """Finds that a service does not answer, as if this process's connection to it were broken."""
    from dbjax.runtime.ray.handle import PEERS

    PEERS.tell("suspect", PEERS[service.name].peer._replace(actor=None))


def require_end(pid):
    """Waits until a process has ended."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"{pid} is still alive")


async def life(log):
    try:
        return (await log.call(Log.life))[0]
    except NodeDied:
        await log.up()
        return None


@pytest.mark.parametrize("between", ["a caller and the head", "the copies"])
def test_a_backup_loses_nothing_when_a_connection_breaks(runtime, between):
    async def main(node, chain):
        for number in range(1, 401):
            if number == 100:
                if between == "the copies":
                    await node.service("counter").call(
                        ReplicatedService.observe, "give_up", (), {}, True
                    )
                else:
                    await give_up(node.service("counter"))
            last = await chain.call(Counter.add, number)
        return last

    chain = serve_replicated(runtime, "counter", 1, Counter)
    ended = runtime.spawn("main", main, chain)
    assert runtime.run(until_s=LIMIT_S) < LIMIT_S
    assert ended.result() == 400
    died = [row["node"] for row in runtime._trace.rows if row.get("event") == "died"]
    assert died == ["counter/backup" if between == "the copies" else "counter"]


def pid(runtime, name):
    """The operating system's number of the process of a node; waits until it has started."""
    import ray

    actor = runtime._members._members[name].actor
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=LIMIT_S)


@pytest.mark.parametrize("name", ["replica/1", "shard/0", "shard/0/backup"])
def test_who_hangs_is_named_and_ended_and_the_run_goes_on(cluster, caplog, name):
    stopped = []

    async def stop(node, runtime):
        while not [row for row in runtime._trace.rows if row.get("step", 0) > 20]:
            await node.sleep(0.02)
        stopped.append(pid(runtime, name))
        os.kill(stopped[0], signal.SIGSTOP)

    config = downpour.Config(optax.sgd(0.03), replicas=2, shards=1, shard_backups=1, steps=600)
    result = dbjax.run(
        TASK, config, runtime="ray", ray=RayOptions(hang_s=2.0), background=stop, until_s=LIMIT_S
    )
    require_end(stopped[0])
    assert f"{name} has not answered for 2 s: it is killed" in caplog.messages
    died = [row["node"] for row in result.trace.rows if row.get("event") == "died"]
    assert name in died
    assert result.summary["updates"] == 1200
    assert result.summary["lost_pushes"] == 0


def test_a_run_whose_only_replica_hangs_ends_in_time(cluster, caplog):
    """Even if Ray cannot start it again before the end."""

    async def stop(node, runtime):
        await node.sleep(0.5)
        os.kill(pid(runtime, "replica/0"), signal.SIGSTOP)

    config = downpour.Config(optax.sgd(0.03), replicas=1, shards=1, steps=10**6)
    result = dbjax.run(
        TASK, config, runtime="ray", ray=RayOptions(hang_s=1.0), background=stop, until_s=2.0
    )
    assert result.summary["time_s"] == 2.0
    assert "replica/0 has not answered for 1 s: it is killed" in caplog.messages


def test_a_death_while_the_run_comes_up_is_like_any_other(runtime):
    """The service takes its time to be made, and its process dies meanwhile."""

    class Slow(Log):
        def __init__(self, node):
            super().__init__(node)
            time.sleep(1.0)

    async def main(node, log):
        return (await log.call(Log.life))[0]

    def kill():
        while runtime._members is None or runtime._members._members["log"].peer.actor is None:
            time.sleep(0.01)
        os.kill(pid(runtime, "log"), signal.SIGKILL)

    log = runtime.serve("log", Slow)
    ended = runtime.spawn("main", main, log)
    killing = threading.Thread(target=kill)
    killing.start()
    runtime.run(until_s=LIMIT_S)
    killing.join()
    assert ended.result() == 0  # nobody has ever called the one that died
    assert runtime._members._members["log"].deaths == 1


def test_a_process_that_cannot_be_made_is_said_at_once(cluster, monkeypatch):
    """Rather than when it should have come up."""
    monkeypatch.setattr("dbjax.runtime.ray.members.START_S", 1000.0)
    options = RayOptions(env={"JAX_NUMPY_RANK_PROMOTION": "nonsense"})
    runtime = dbjax.runtime.ray.ray_runtime(options)
    runtime.serve("log", Log)
    with pytest.raises(RuntimeError, match=r"^the process of log did not start: .*nonsense.*$"):
        runtime.run(until_s=LIMIT_S)


async def long_step(node, seconds):
    await node.compute(time.sleep, seconds)
    node.record(ended=seconds)


def test_the_end_waits_for_a_long_step(runtime, monkeypatch):
    monkeypatch.setattr("dbjax.runtime.ray.runtime._STOP_S", 0.1)
    runtime.spawn("main", long_step, 2.0)
    assert runtime.run(until_s=0.3) == 0.3
    assert [row["ended"] for row in runtime._trace.rows if "ended" in row] == [2.0]


def test_the_end_does_not_wait_for_ever_for_a_step(runtime, monkeypatch, caplog):
    for limit in ("_STEP_S", "_STOP_S"):
        monkeypatch.setattr(f"dbjax.runtime.ray.runtime.{limit}", 0.1)
    runtime.spawn("main", long_step, LIMIT_S)
    assert runtime.run(until_s=0.3) == 0.3
    assert "still computing, so their latest records are lost: main" in caplog.messages


def test_an_interrupt_does_not_wait_for_a_long_step(runtime, monkeypatch):
    async def interrupt(node):
        await node.sleep(0.3)
        runtime.stop()

    monkeypatch.setattr("dbjax.runtime.ray.runtime._STOP_S", 0.1)
    runtime.spawn("main", long_step, LIMIT_S)
    runtime.observe("interrupt", interrupt)
    assert runtime.run() < LIMIT_S


def test_an_interrupt_while_processes_come_up_ends_them(runtime):
    runtime.spawn("main", long_step, LIMIT_S)
    runtime.stop()
    with pytest.raises(KeyboardInterrupt):
        runtime.run()
