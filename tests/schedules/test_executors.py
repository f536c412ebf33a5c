"""Which executor does the arithmetic of a run; interrupts and resumption of compiled runs."""

import dataclasses
import os
import signal

import jax
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, easgd, sandblaster, sgd
from dbjax.errors import ReplayError
from dbjax.program import ReplicaSession, SessionOptions, asynchronous
from dbjax.schedules import timing
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


def executor_of(config, **kwargs):
    return dbjax.run(task_of(2), config, **kwargs).summary["executor"]


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
        (sandblaster.Config(replicas=2, shards=2, steps=2), {}, "it looks at examples in a way"),
    ],
)
def test_the_summary_says_why_the_engine_did_it(config, kwargs, why):
    assert why in executor_of(config, **kwargs)["why"]
    with pytest.raises(ValueError, match=r"^executor='compiled': .*; use executor='auto'$"):
        executor_of(config, executor="compiled", **kwargs)


@pytest.mark.usefixtures("worth_compiling")
def test_a_rule_with_a_random_key_is_left_to_the_engine():
    rule = optax.noisy_sgd(0.1, key=jax.random.key(0))
    found = executor_of(downpour.Config(rule, replicas=2, shards=1, steps=5), cluster=CLUSTER)
    assert found == {"name": "engine", "why": "the state of its rule holds a random key"}


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
    found = dbjax.run(task_of(2), config, cluster=CLUSTER, evaluate_every_s=10.0, trace=trace)
    assert found.summary["interrupted"] == "SIGINT"
    assert 500 < found.summary["updates"] < 4000
    until_s = found.summary["time_s"]
    other = dbjax.run(
        task_of(2), config, cluster=CLUSTER, evaluate_every_s=10.0, until_s=until_s,
        executor="engine",
    )  # fmt: skip
    assert other.summary["params_sha256"] == found.summary["params_sha256"]
    assert [*map(plain, found.trace.rows)] == [*map(plain, other.trace.rows)]


@pytest.mark.usefixtures("worth_compiling")
@pytest.mark.parametrize("parts", [1, 9])
def test_a_listener_ends_the_run_where_it_would_on_the_engine(parts, in_parts):
    if parts > 1:
        in_parts()

    def run(executor):
        def listen(row):
            if row["node"] == "evaluator" and row["time_s"] > 0.7:
                trace.stop()

        trace = dbjax.Trace(listeners=[listen], max_spans=1000)
        return dbjax.run(
            task_of(2), method(n_push=2, n_fetch=2), cluster=CLUSTER, until_s=3.0,
            evaluate_every_s=0.2, trace=trace, executor=executor,
        )  # fmt: skip

    compiled, engine = run("compiled"), run("engine")
    assert compiled.summary["time_s"] == pytest.approx(0.8)
    assert compiled.summary["params_sha256"] == engine.summary["params_sha256"]
    assert [*map(plain, compiled.trace.rows)] == [*map(plain, engine.trace.rows)]
    assert compiled.trace.spans == engine.trace.spans


def test_without_an_evaluation_a_listener_ends_a_compiled_run_at_the_next_pause():
    rows = []

    def listen(row):
        rows.append(row)
        if len(rows) == 1500:
            trace.stop()

    trace = dbjax.Trace(listeners=[listen])
    run = dbjax.run(task_of(2), method(steps=4000), cluster=CLUSTER, trace=trace)
    assert run.summary["executor"]["name"] == "compiled"
    assert run.summary["interrupted"] is None
    assert 1000 < run.summary["updates"] < 4000


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
@pytest.mark.parametrize("parts", [1, 9])
@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_goes_on_exactly(name, parts, in_parts):
    config, cluster = CASES[name]
    if parts > 1:
        in_parts()
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
    first = dbjax.run(task_of(2), method(), checkpoints=kept, **kwargs)
    more = {**kwargs, "until_s": 4.0, "resume": kept.contents[-1]}
    for again in (
        dbjax.run(task_of(2), method(), seed=1, **more),
        dbjax.run(task_of(2), method(), executor="engine", **more),
    ):
        assert again.summary["executor"]["name"] == "engine"
        assert again.summary["updates"] > first.summary["updates"]
        assert again.summary["lost_pushes"] == 0


@pytest.mark.usefixtures("worth_compiling")
def test_a_shard_that_comes_back_is_sent_the_state_of_its_rule():
    """That takes time, and the state of Adam is twice as large as the parameters."""
    cluster = dbjax.Cluster(
        compute_s=0.05,
        latency_s=5e-3,
        machine=dbjax.Machine(bandwidth_bytes_per_s=2e3),
        failures=(dbjax.Failure("shard/0", 0.5, 0.7),),
    )
    config = downpour.Config(optax.adam(0.05), replicas=3, shards=1, shard_backups=1)
    engine, compiled = (
        dbjax.run(task_of(2), config, cluster=cluster, until_s=2.0, executor=executor)
        for executor in ("engine", "compiled")
    )
    assert [*map(plain, engine.trace.rows)] == [*map(plain, compiled.trace.rows)]
    assert engine.summary["deaths"] == engine.summary["returns"] == 1


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


def test_the_schedule_of_a_log_is_that_of_the_run():
    lines, config = [], method(steps=12, n_push=2, n_fetch=3)
    log = dbjax.EventLog(lines.append)
    run = dbjax.run(task_of(2), config, runtime="threads", log=log)
    table = dbjax.schedule_of_log(task_of(2), config, dbjax.Script(lines))
    many = dbjax.run_many(task_of(2), config, table, over={}, at_once=False)
    for name, value in run.params.items():
        np.testing.assert_array_equal(many.params[name], value)
    with pytest.raises(ReplayError):
        dbjax.schedule_of_log(task_of(2), method(steps=12), dbjax.Script(lines))
    with pytest.raises(TypeError, match="is not a Script"):
        dbjax.schedule_of_log(task_of(2), config, lines)


def test_nothing_is_compiled_again_from_chunk_to_chunk(monkeypatch):
    from dbjax.schedules import compiled

    def noted(*args):
        made.append(before(*args))
        return made[-1]

    made, before = [], compiled._compiled_chunk
    before.cache_clear()
    monkeypatch.setattr(compiled, "_compiled_chunk", noted)
    config = method(steps=600)  # more than two chunks
    dbjax.run(task_of(2), config, cluster=CLUSTER, executor="compiled", evaluate_every_s=3.0)
    assert len(made) > 2
    assert {function._cache_size() for function in made} == {1}
    assert before.cache_info().misses == 1


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


@pytest.mark.parametrize(
    ("part", "cluster"),
    [(0, CLUSTER), (1, CLUSTER), (1, dbjax.Cluster(compute_s=0.1)), (2, CLUSTER)],
)
def test_an_interrupt_while_the_timing_is_found_ends_the_run(part, cluster, monkeypatch):
    """The run ends where its arithmetic stands."""

    def interrupted(self, *args):
        before(self, *args)
        counts.append(self.timing().schedule.gradients)
        if len(counts) > part:
            signal.raise_signal(signal.SIGINT)

    counts, before = [], timing.TimedRun.advance
    monkeypatch.setattr(timing.TimedRun, "advance", interrupted)
    config = dataclasses.replace(method(steps=8000), replicas=3)  # which does not divide a part
    run = dbjax.run(task_of(2), config, cluster=cluster, executor="auto")
    assert run.summary["interrupted"] == "SIGINT"
    assert run.summary["lost_pushes"] == 0
    done, ahead = [0, *counts[:-1]][-1], counts[-1]
    assert done - 8 <= run.summary["updates"] <= done < ahead < 24000
    if not part:
        assert run.summary["time_s"] == 0.0
        return
    until_s = run.summary["time_s"]
    other = dbjax.run(task_of(2), config, cluster=cluster, until_s=until_s, executor="engine")
    assert other.summary["params_sha256"] == run.summary["params_sha256"]
    assert [*map(plain, run.trace.rows)] == [*map(plain, other.trace.rows)]


@pytest.mark.usefixtures("worth_compiling")
def test_a_resumed_run_that_is_interrupted_at_once_stands_where_it_stood(monkeypatch):
    def interrupted(self, *args):
        before(self, *args)
        if len(came) == 0:
            came.append(signal.raise_signal(signal.SIGINT))

    came, before, kept = [], timing.TimedRun.advance, Kept()
    kwargs = {"cluster": CLUSTER, "executor": "compiled"}
    first = dbjax.run(task_of(2), method(), until_s=1.3, checkpoints=kept, **kwargs)
    with monkeypatch.context() as patched:
        patched.setattr(timing.TimedRun, "advance", interrupted)
        found = dbjax.run(
            task_of(2), method(), until_s=2.5, resume=kept.contents[-1], checkpoints=kept, **kwargs
        )
    for name in ("updates", "time_s", "params_sha256"):
        assert found.summary[name] == first.summary[name]
    whole = dbjax.run(task_of(2), method(), until_s=2.5, **kwargs)
    again = dbjax.run(task_of(2), method(), until_s=2.5, resume=kept.contents[-1], **kwargs)
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]


async def curious(node, server, gradient_fn, batches, config):
    """Computes with its losses, but only after a while."""
    replica = await ReplicaSession.join(node, server, SessionOptions(batches.batch_size, 1, 1))
    for step in replica.steps(config.steps):
        replica.start_fetch()
        params = await replica.parameters()
        loss, gradient = await node.compute(gradient_fn, params, batches.at(step))
        node.record(step=step, loss=loss if step < 40 else float(loss))
        replica.accumulate(gradient)
        await replica.start_push()
    await replica.flush()


@pytest.mark.usefixtures("worth_compiling")
def test_the_engine_takes_over_and_nothing_is_heard_twice(monkeypatch, in_parts):
    in_parts()
    monkeypatch.setattr(
        downpour,
        "program",
        lambda runtime, task, config, restore=None: asynchronous(
            runtime, task, config, curious, restore, rule=config.rule
        ),
    )
    heard, kept = {}, Kept()
    for executor in ("auto", "engine"):
        heard[executor] = []
        run = dbjax.run(
            task_of(2),
            method(steps=60),
            cluster=CLUSTER,
            evaluate_every_s=0.3,
            trace=dbjax.Trace(listeners=[heard[executor].append]),
            checkpoint_every=dbjax.Every(seconds=0.5),
            checkpoints=kept if executor == "auto" else None,
            executor=executor,
        )
        assert run.summary["executor"]["name"] == "engine"
        assert [*map(plain, heard[executor])] == [*map(plain, run.trace.rows)]
    assert [*map(plain, heard["auto"])] == [*map(plain, heard["engine"])]
    assert kept.contents[0].compiled is not None  # the run had begun to be compiled


def test_rows_of_a_run_that_begins_again_are_heard_by_new_listeners():
    before, after = [], []
    trace = dbjax.Trace(listeners=[before.append])
    for begin in (False, True):
        if begin:
            trace.begin_again(0)
            trace.listeners.append(after.append)
        for step in range(3 + begin):
            trace.record("replica/0", 0.0, {"step": step})
    assert [row["step"] for row in before] == [0, 1, 2, 3]
    assert [row["step"] for row in after] == [0, 1, 2, 3]
    assert len(trace.rows) == 4


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
