"""Which executor does the arithmetic of a run; interrupts and resumption of compiled runs."""

import dataclasses
import os
import signal

import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, easgd, sandblaster, sgd
from dbjax.program import ReplicaSession, SessionOptions, asynchronous
from tests.schedules.drawn import task_of
from tests.schedules.test_same_bytes import plain

CLUSTER = dbjax.Cluster(
    compute_s=0.05,
    latency_s=5e-3,
    machine=dbjax.Machine(law="lognormal", sigma=0.5, bandwidth_bytes_per_s=2e3),
)
FAILING = dbjax.Cluster(
    compute_s=0.05,
    latency_s=5e-3,
    machine=CLUSTER.machine,
    failures=(dbjax.Failure("replica/1", 0.5, 0.9), dbjax.Failure("replica/2", 0.7, 1.1)),
)


def method(**kwargs):
    return downpour.Config(optax.adagrad(0.05), replicas=4, shards=2, **kwargs)


def executor_of(config, executor="auto", **kwargs):
    return dbjax.run(task_of(2), config, executor=executor, **kwargs).summary["executor"]


def test_auto_takes_the_compiled_one_where_it_pays():
    found = executor_of(method(steps=150), cluster=CLUSTER)
    assert found["name"] == "compiled"
    assert found["nbytes"] > 8 * 6 * 4 * 2  # eight versions of two slices of six numbers, at least
    assert executor_of(method(steps=5), cluster=CLUSTER) == {
        "name": "engine", "why": "compiling would take longer than its 20 gradients",
    }  # fmt: skip


async def watch(node, runtime):
    await node.sleep(0.1)


@pytest.mark.parametrize(
    ("config", "kwargs", "why"),
    [
        (method(steps=3), {"runtime": "threads"}, "runtime='threads' is timed by real machines"),
        (method(steps=3), {"background": watch}, "background may look at the run"),
        (method(steps=3), {"log": dbjax.EventLog(lambda lines: None)}, "an event log was asked"),
        (easgd.Config(replicas=2, shards=2, steps=3), {}, "its arithmetic cannot be recorded"),
        (sandblaster.Config(replicas=2, shards=2, steps=2), {}, "it has no server rule"),
    ],
)
def test_the_summary_says_why_the_engine_did_it(config, kwargs, why):
    assert why in executor_of(config, **kwargs)["why"]
    with pytest.raises(ValueError, match=r"^executor='compiled': .*; use executor='auto'$"):
        executor_of(config, executor="compiled", **kwargs)


def test_another_executor_is_refused():
    with pytest.raises(ValueError, match="executor='fast' is neither"):
        executor_of(method(steps=3), executor="fast")


@pytest.mark.usefixtures("worth_compiling")
def test_versions_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr("dbjax.schedules.execution.free_bytes", lambda: 100)
    found = executor_of(method(steps=5), cluster=CLUSTER)
    assert found["name"] == "engine"
    assert "versions of the parameters must be kept" in found["why"]
    assert found["why"].endswith("1e-07 GB are free")


def test_an_interrupted_run_is_one_that_was_to_end_then():
    def interrupt(row):
        heard.append(row)
        if len(heard) == 1500:
            os.kill(os.getpid(), signal.SIGINT)

    heard = []
    config = method(n_push=2, n_fetch=2, steps=4000)
    trace = dbjax.Trace(listeners=[interrupt])
    found = dbjax.run(
        task_of(2), config, cluster=CLUSTER, evaluate_every_s=10.0, trace=trace, executor="auto"
    )
    assert found.summary["interrupted"] == "SIGINT"
    assert 500 < found.summary["updates"] < 4000
    until_s = found.summary["time_s"]
    other = dbjax.run(
        task_of(2), config, cluster=CLUSTER, evaluate_every_s=10.0, until_s=until_s,
        executor="engine",
    )  # fmt: skip
    assert other.summary["params_sha256"] == found.summary["params_sha256"]
    assert [*map(plain, found.trace.rows)] == [*map(plain, other.trace.rows)]


class Kept(dbjax.Checkpoints):
    """Checkpoints that stay in memory, as those on disk would hold them."""

    def __init__(self):
        self.contents = []

    def save(self, content, arrays=None):
        self.contents.append(content)

    def wait(self):
        pass


CASES = {
    "pushes of two": (method(n_push=2, n_fetch=3), CLUSTER),
    "overlap": (method(overlap=True), CLUSTER),
    "a local rule": (method(n_fetch=2, local_rule=optax.adam(0.01)), CLUSTER),
    "synchronous": (sgd.Config(optax.adagrad(0.05), replicas=4, shards=2), CLUSTER),
    "failures": (method(n_push=2, n_fetch=2), FAILING),
}


@pytest.mark.usefixtures("worth_compiling")
@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_goes_on_exactly(name):
    config, cluster = CASES[name]
    kwargs = {
        "cluster": cluster,
        "evaluate_every_s": 0.35,
        "checkpoint_every": dbjax.Every(seconds=0.5),
        "executor": "compiled",
    }

    def run(until_s, **more):
        return dbjax.run(task_of(2), config, until_s=until_s, **kwargs, **more)

    kept, shorter = Kept(), Kept()
    whole = run(2.5, checkpoints=kept)
    run(1.3, checkpoints=shorter)
    times = [content.time_s for content in kept.contents]
    np.testing.assert_allclose(times, [0.5, 1.0, 1.5, 2.0, 2.5, 2.5])  # and the last one
    for content in (*kept.contents, shorter.contents[-1]):
        again = run(2.5, resume=content)
        assert again.summary["params_sha256"] == whole.summary["params_sha256"], content.time_s
        assert [*map(plain, again.evaluations)] == [*map(plain, whole.evaluations)]
        assert again.staleness_histogram == whole.staleness_histogram


@pytest.mark.usefixtures("worth_compiling")
def test_another_program_resumes_from_the_states_of_the_shards():
    kept = Kept()
    kwargs = {"cluster": CLUSTER, "until_s": 2.0}
    first = dbjax.run(task_of(2), method(), checkpoints=kept, executor="compiled", **kwargs)
    more = {**kwargs, "until_s": 4.0, "resume": kept.contents[-1]}
    for again in (
        dbjax.run(task_of(2), method(), seed=1, executor="auto", **more),
        dbjax.run(task_of(2), method(), executor="engine", **more),
    ):
        assert again.summary["executor"]["name"] == "engine"
        assert again.summary["updates"] > first.summary["updates"]
        assert again.summary["lost_pushes"] == 0


@pytest.mark.parametrize("runtime", ["threads", "virtual"])
def test_a_replay_is_compiled(runtime):
    lines = []
    config = method(steps=40, n_push=2, n_fetch=3)
    run = dbjax.run(task_of(2), config, runtime=runtime, log=dbjax.EventLog(lines.append))
    found = [
        dbjax.replay(task_of(2), config, dbjax.Script(lines), executor=executor)
        for executor in ("compiled", "engine", "auto")
    ]
    assert {one.params_sha256 for one in found} == {run.summary["params_sha256"]}
    assert len({one.calls for one in found}) == 1


def test_nothing_is_compiled_again_from_chunk_to_chunk(monkeypatch):
    from dbjax.schedules import compiled

    def noted(*args):
        made.append(before(*args))
        return made[-1]

    made, before = [], compiled._compiled_chunk.__wrapped__
    monkeypatch.setattr(compiled, "_compiled_chunk", noted)
    config = method(steps=600)  # more than two chunks
    dbjax.run(task_of(2), config, cluster=CLUSTER, executor="compiled", evaluate_every_s=3.0)
    assert [function._cache_size() for function in made] == [1]


@dataclasses.dataclass(frozen=True)
class OtherRules(downpour.Config):
    """A method of this module, whose rules are not those of its Config."""


async def client(node, server, gradient_fn, batches, config):
    options = SessionOptions(batches.batch_size, 2, 1, local_rule=LOCAL)
    replica = await ReplicaSession.join(node, server, options)
    for step in replica.steps(config.steps):
        if step % 2 == 0:
            replica.start_fetch()
        params = await replica.parameters()
        loss, gradient = await node.compute(gradient_fn, params, batches.at(step))
        replica.accumulate(gradient, examples=EXAMPLES.get(config.replicas))
        replica.step_locally(gradient)
        await replica.start_push()
        node.record(step=step, loss=loss)
    await replica.flush()


LOCAL = optax.sgd(0.2)
EXAMPLES = {3: 99}  # with three replicas, pushes say that they saw another number of examples


def program(runtime, task, config, restore=None):
    return asynchronous(runtime, task, config, client, restore, rule=optax.sgd(0.01))


def test_the_rules_of_a_method_are_applied_and_not_those_of_its_config():
    def digest(executor, replicas):
        config = OtherRules(optax.sgd(5.0), replicas=replicas, shards=2, steps=20)
        run = dbjax.run(task_of(2), config, cluster=CLUSTER, executor=executor)
        return run.summary["params_sha256"]

    assert digest("compiled", 2) == digest("engine", 2)
    with pytest.raises(ValueError, match="another number of examples"):
        digest("compiled", 3)


def test_an_interrupt_while_the_timing_is_found_ends_the_run(monkeypatch):
    from dbjax.executors import compiled

    def interrupted(*args, **kwargs):
        if not came:
            came.append(signal.raise_signal(signal.SIGINT))
        return before(*args, **kwargs)

    came, before = [], compiled.time_run
    monkeypatch.setattr(compiled, "time_run", interrupted)
    run = dbjax.run(task_of(2), method(steps=500), cluster=CLUSTER, executor="auto")
    assert (run.summary["interrupted"], run.summary["updates"]) == ("SIGINT", 0)


def test_another_model_is_refused_as_on_the_engine():
    kept = Kept()
    dbjax.run(task_of(2), method(steps=150), cluster=CLUSTER, executor="compiled", checkpoints=kept)
    with pytest.raises(ValueError, match="the checkpoint is of another run: params"):
        dbjax.run(task_of(3), method(steps=200), cluster=CLUSTER, executor="auto",
                  resume=kept.contents[-1])  # fmt: skip


def test_a_replay_on_another_executor_is_refused():
    lines = []
    dbjax.run(task_of(2), method(steps=3), log=dbjax.EventLog(lines.append))
    with pytest.raises(ValueError, match="executor='fast' is neither"):
        dbjax.replay(task_of(2), method(steps=3), dbjax.Script(lines), executor="fast")
