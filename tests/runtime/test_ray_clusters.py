"""Clusters of Ray other than the usual one: machines that are lost, addresses where nobody is."""

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sgd
from dbjax.runtime.ray import RayOptions
from dbjax.runtime.ray.placement import Placement
from tests.processes import LIMIT_S
from tests.runtime.services import Log
from tests.test_conformance import TASK, config

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
SOON = {f"health_check_{what}": n for what, n in (
    ("initial_delay_ms", 0), ("period_ms", 500), ("timeout_ms", 500),
    ("failure_threshold", 2))}  # fmt: skip


@contextlib.contextmanager
def machines_of(ray, count, head=None, **each):
    """A cluster of a head and other machines; its own processes are on the head."""
    from ray.cluster_utils import Cluster

    made = Cluster(True, head_node_args={"num_cpus": 2, "_system_config": SOON} | (head or {}))
    others = [made.add_node(num_cpus=1, **each) for _ in range(count)]
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield made, others
    finally:
        ray.shutdown()
        made.shutdown()


def test_an_address_where_nobody_answers_is_one_line():
    with pytest.raises(ValueError, match=r"no Ray cluster answers at .*127\.0\.0\.1:9"):
        dbjax.run(TASK, config(sgd), runtime="ray", ray=RayOptions("127.0.0.1:9"))


@contextlib.contextmanager
def placed(ray, *address):
    """The Ray cluster of a run with this `ray.address`."""
    placement = Placement(RayOptions(*address), ())
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        placement.close()


def test_only_who_says_so_joins_a_cluster(by_value, monkeypatch, caplog):
    from ray.cluster_utils import Cluster

    running = Cluster(True, head_node_args={"num_cpus": 1})
    monkeypatch.setenv("RAY_ADDRESS", running.address)
    try:
        with placed(by_value) as cluster:
            assert cluster != running.address
        for address in ("auto", running.address):
            with placed(by_value, address) as cluster:
                assert cluster == running.address
        assert not caplog.records
    finally:
        running.shutdown()
        monkeypatch.undo()
    with placed(by_value, "auto") as cluster:
        assert cluster != running.address
    assert [r.message for r in caplog.records] == [
        "ray.address=auto: no cluster runs here, so one is started for this run only"
    ]


def test_a_replica_is_killed_elsewhere_and_moves_when_its_machine_is_lost(by_value):
    async def main(node, log):
        large = np.full(10**6, node.incarnation)  # through the network: no memory is shared
        await log.call(Log.say, (machine(), large))
        while node.incarnation < 2:
            await node.sleep(0.05)

    async def lose(node, log, runtime):
        while not await log.call(Log.words):
            await node.sleep(0.05)
        runtime.kill("replica/0")
        while len(said := await log.call(Log.words)) < 2:
            await node.sleep(0.05)
        (lost,) = [other for other in others if other.node_id == said[1][0]]
        machines.remove_node(lost, allow_graceful=False)

    options = RayOptions(cpus=1.5, replica_cpus=1.0, replica_gpus=1.0)  # one place each
    with machines_of(by_value, 2, num_gpus=1) as (machines, others):
        runtime = dbjax.runtime.ray.ray_runtime(options, trace=dbjax.Trace())
        with contextlib.closing(runtime):
            log = runtime.serve("log", Log)
            runtime.spawn("replica/0", main, log)
            runtime.observe("loser", lose, log, runtime)
            assert runtime.run(until_s=LIMIT_S) < LIMIT_S
            said = log.call(Log.words).result()
    assert {node for node, _ in said[1:]} == {other.node_id for other in others}
    assert [large.sum() for _, large in said] == [0, 10**6, 2 * 10**6]
    events = [row["event"] for row in runtime._trace.rows if "event" in row]
    assert events == ["died", "returned"] * 2


def machine():
    import ray

    return ray.get_runtime_context().get_node_id()


def test_nothing_is_lost_with_a_shards_machine(by_value):
    async def lose(node, runtime):
        while not [row for row in runtime._trace.rows if row.get("step", 0) > 50]:
            await node.sleep(0.02)
        hosts = runtime._members._members["shard/0"].peer.machine
        (lost,) = [other for other in others if other.node_id == hosts]
        machines.remove_node(lost, allow_graceful=False)

    cfg = downpour.Config(optax.sgd(0.03), replicas=1, shards=1, shard_backups=1, steps=1500)
    options = RayOptions(cpus=1.0, replica_gpus=1.0)  # the replica on the head, a place to spare
    with machines_of(by_value, 3, {"num_cpus": 1, "num_gpus": 1}) as (machines, others):
        result = dbjax.run(TASK, cfg, runtime="ray", ray=options, background=lose)
    died = [row["node"] for row in result.trace.rows if row.get("event") == "died"]
    assert died == ["shard/0"]
    assert (result.summary["updates"], result.summary["lost_pushes"]) == (1500, 0)
    undisturbed = dbjax.run(TASK, cfg)
    assert result.summary["params_sha256"] == undisturbed.summary["params_sha256"]


def processes_of(machine):
    """The numbers of a Ray node's raylet and of everything that it has started."""
    (raylet,) = machine.all_processes["raylet"]
    found = [raylet.process.pid]
    for one in found:
        children = Path(f"/proc/{one}/task/{one}/children")
        found += map(int, children.read_text().split())
    return found


def test_nothing_is_lost_when_a_shards_machine_is_cut_off_and_comes_back(by_value):
    """For the others, a machine that stands still is one that the network has cut off."""
    cut_off = []

    def send(number):
        for one in cut_off:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)

    async def cut(node, runtime):
        def rows(**wanted):
            return [r for r in runtime._trace.rows if wanted.items() <= r.items()]

        while not [row for row in runtime._trace.rows if row.get("step", 0) > 50]:
            await node.sleep(0.02)
        hosts = runtime._members._members["shard/0"].peer.machine
        (lost,) = [other for other in others if other.node_id == hosts]
        cut_off.extend(processes_of(lost))
        send(signal.SIGSTOP)
        while not rows(node="shard/0", event="returned"):
            await node.sleep(0.05)
        send(signal.SIGCONT)

    cfg = downpour.Config(optax.sgd(0.03), replicas=1, shards=1, shard_backups=1, steps=1500)
    options = RayOptions(cpus=1.0, replica_gpus=1.0, hang_s=3.0)
    with machines_of(by_value, 3, {"num_cpus": 1, "num_gpus": 1}) as (_, others):
        try:
            result = dbjax.run(TASK, cfg, runtime="ray", ray=options, background=cut)
        finally:
            send(signal.SIGKILL)
    died = [row["node"] for row in result.trace.rows if row.get("event") == "died"]
    assert died == ["shard/0"]
    assert (result.summary["updates"], result.summary["lost_pushes"]) == (1500, 0)
    undisturbed = dbjax.run(TASK, cfg)
    assert result.summary["params_sha256"] == undisturbed.summary["params_sha256"]


def test_the_rest_of_a_log_on_another_machine_is_read_there(by_value, tmp_path):
    from dbjax.runtime.ray.process import LogFile
    from dbjax.runtime.ray.runtime import _read

    path = tmp_path / "log"
    path.write_text("header\n1\n2\n3\nincomplete")
    with machines_of(by_value, 1) as (_, (other,)):
        file = LogFile("shard/0", other.node_id, str(path))
        assert _read(other.node_id, {file: 1}) == "2\n3\n"
    assert not path.exists()
