"""What goes wrong in a run is said once; what is right says nothing."""

import dataclasses
import logging
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.checkpoint import Checkpoints
from dbjax.checkpoint.state import rows_to_keep
from dbjax.monitoring.health import kind

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 3.0], np.float32)


def squared(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


TASK = dbjax.Task({"w": np.zeros(3, np.float32)}, squared, (X, Y), batch_size=8)
GOOD, WILD = optax.sgd(0.05), optax.sgd(1e3)
ONE = downpour.Config(GOOD, replicas=1, shards=1, steps=60)
METHODS = {
    "downpour": lambda rule: dataclasses.replace(ONE, rule=rule, replicas=2, steps=40),
    "sgd [1]": lambda rule: sgd.Config(rule, steps=40),
    "sgd [2]": lambda rule: sgd.Config(rule, replicas=2, steps=40),
}


@pytest.fixture
def logged(caplog):
    """What the library's logger has warned of, in order."""
    caplog.set_level(logging.WARNING, "dbjax")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "dbjax"]


def kinds(result):
    return [kind(warning) for warning in result.summary["warnings"]]


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize("method", METHODS)
def test_divergence_is_said_once_with_numbers(method, runtime, logged):
    result = dbjax.run(TASK, METHODS[method](WILD), runtime=runtime)
    assert kinds(result) == ["diverged", "refused pushes", "overflowed parameters"]
    assert list(map(kind, logged())) == kinds(result)
    if runtime == "virtual":  # in threads the counts have grown since
        assert logged() == result.summary["warnings"]
    diverged, refused, parameters = result.summary["warnings"]
    count = result.summary["refused_pushes"]
    assert f"{count} of {count + result.summary['updates']} pushes had a gradient" in refused
    assert "of the last" in diverged
    assert "3 of 3 are not finite" in parameters
    assert not any("\n" in line for line in logged())


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize("method", [*METHODS, "sandblaster"])
def test_an_ordinary_run_says_nothing(method, runtime, logged):
    made = METHODS.get(method, lambda _: sandblaster.Config(replicas=2, shards=2, steps=5))
    assert dbjax.run(TASK, made(GOOD), runtime=runtime).summary["warnings"] == logged() == []


def test_a_batch_method_whose_loss_is_not_finite_says_so(logged):
    task = dataclasses.replace(TASK, loss=lambda p, batch: jnp.inf * squared(p, batch))
    result = dbjax.run(task, sandblaster.Config(replicas=2, steps=5))
    assert kinds(result) == ["diverged", "no update"]
    assert logged() == result.summary["warnings"]


def looked_at(rule, until_s=20.0, **given):
    config = dataclasses.replace(ONE, rule=rule, steps=None)
    return dbjax.run(TASK, config, until_s=until_s, evaluate_every_s=2.0, **given)


def test_it_is_said_while_it_happens_and_again_in_the_same_words(logged):
    """At 8 s most of the losses, one a second, are above 1,000 times the first."""
    seen = []

    def listen(row):
        if row["node"] == "evaluator":
            seen.append((row["time_s"], len(logged())))

    result = looked_at(WILD, trace=dbjax.Trace(listeners=[listen]))
    said = {row["time_s"]: row["warnings"] for row in result.evaluations if "warnings" in row}
    (first_s, first), (second_s, second) = said.items()
    assert (kind(*first), kind(*second)) == ("diverged", "refused pushes")
    assert 0 < first_s < second_s < 20.0
    assert dict(seen)[first_s] >= 1
    assert result.summary["warnings"][0] == first[0]
    assert result.summary["warnings"][1] != second[0]  # more have been refused since
    before = logged()
    again = looked_at(WILD)
    assert again.summary["warnings"] == result.summary["warnings"]
    assert logged() == 2 * before


@pytest.mark.parametrize("every_s", [2.0, None])
@pytest.mark.parametrize("seed", [0, 1])  # another program: only its shards are taken up
def test_a_run_that_is_taken_up_does_not_say_it_again(every_s, seed, logged, tmp_path):
    config = dataclasses.replace(ONE, rule=WILD, steps=None)
    given = {"evaluate_every_s": every_s, "checkpoint_every": dbjax.Every(seconds=5.0)}
    with Checkpoints(tmp_path) as checkpoints:
        dbjax.run(TASK, config, until_s=20.0, checkpoints=checkpoints, **given)
        content = checkpoints.latest()
    said = logged()
    task = dataclasses.replace(TASK, seed=seed)
    again = dbjax.run(task, config, until_s=30.0, resume=content, **given)
    assert set(kinds(again)) == set(map(kind, said))
    # the parameters are looked at when a run is over: that is said of each end
    assert list(map(kind, logged()[len(said) :])) == ["overflowed parameters"]
    if seed == 0:
        whole = dbjax.run(TASK, config, until_s=30.0, **given)
        assert again.summary["warnings"] == whole.summary["warnings"]
        rows = [[(row["time_s"], row.get("warnings")) for row in r.evaluations]
                for r in (again, whole)]  # fmt: skip
        assert rows[0] == rows[1]


def test_what_is_new_is_said_by_a_run_that_is_taken_up(logged, tmp_path):
    """Its rate is raised by a schedule, after the checkpoint."""
    rule = optax.sgd(lambda step: jnp.where(step < 15, 0.05, 1e3))
    with Checkpoints(tmp_path) as checkpoints:
        assert looked_at(rule, 10.0, checkpoints=checkpoints).summary["warnings"] == []
        content = checkpoints.latest()
    assert logged() == []
    again = looked_at(rule, 40.0, resume=content)
    assert kinds(again) == list(map(kind, logged()))
    assert kinds(again)[-1] == "overflowed parameters"
    assert again.summary["warnings"] == looked_at(rule, 40.0).summary["warnings"]


def test_it_is_said_long_before_the_end_where_no_evaluation_looks(logged):
    """Of 3,000 losses: when the trace has 2,000 or so."""
    heard = []

    def listen(row):
        if row["node"] == "run":
            heard.append(row["time_s"])

    config = dataclasses.replace(ONE, rule=WILD, steps=3000)
    result = dbjax.run(TASK, config, trace=dbjax.Trace(listeners=[listen]))
    assert 0 < heard[0] < 2500 < result.summary["time_s"]
    assert logged() == [row["warnings"][0] for row in result.trace.rows if row["node"] == "run"]


def test_a_checkpoint_knows_the_first_loss_and_the_latest():
    rows = [{"time_s": t, "node": "replica/0", "loss": float(t)} for t in range(300)]
    assert [row["time_s"] for row in rows_to_keep(rows, 100)] == [0, *range(200, 300)]
    assert rows_to_keep(rows[:50], 100) == tuple(rows[:50])


def some_not_finite(params, batch):
    """Of each example whose first input is large."""
    scale = jnp.where(batch[0][:, 0] > 1.5, jnp.nan, 1.0)
    return jnp.mean(scale * (batch[0] @ params["w"] - batch[1]) ** 2)


def test_a_few_examples_that_are_not_finite_are_no_divergence():
    task = dataclasses.replace(TASK, loss=some_not_finite, batch_size=1)
    bad = int(np.sum(X[:, 0] > 1.5))
    assert 0 < bad < 10
    result = dbjax.run(task, dataclasses.replace(ONE, steps=64, shards=2))
    assert result.summary["warnings"] == [
        f"refused pushes: {2 * bad} of 128 pushes, as 2 shards count them, had a gradient that was "
        "not finite, so they were not applied"
    ]


def test_losses_are_held_against_the_first_or_one():
    """One that begins at the solution is not diverged when it leaves it; 1,000 is the border."""
    solution = dataclasses.replace(TASK, params={"w": np.array([1.0, -2.0, 3.0], np.float32)})
    near = dataclasses.replace(solution, data=(X, Y + 1e-3))
    for task, rate, expected in ((TASK, 10.0, []), (TASK, 100.0, ["diverged"]), (near, 1e3, [])):
        rule = optax.sgd(lambda step, rate=rate: jnp.where(step < 1, rate, 0.0))  # once
        result = dbjax.run(task, dataclasses.replace(ONE, rule=rule))
        first, *later = [float(row["loss"]) for row in result.trace.rows if "loss" in row]
        assert (np.median(later) > 1e3 * first) == (task is near or bool(expected))
        assert kinds(result) == expected


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_no_update_is_said(runtime):
    task = dataclasses.replace(TASK, loss=lambda p, batch: jnp.nan * squared(p, batch))
    result = dbjax.run(task, ONE, runtime=runtime)
    assert kinds(result) == ["diverged", "refused pushes", "no update"]
    assert "60 of 60 pushes" in result.summary["warnings"][1]


def test_no_update_is_said_of_a_run_that_is_too_short():
    (said,) = dbjax.run(TASK, ONE, until_s=0.5).summary["warnings"]
    assert said == "no update: the parameters are the initial ones after 0.5 s"


@pytest.mark.parametrize("rule", [optax.sgd(lambda step: 0.0), optax.set_to_zero()])
def test_a_rate_of_nothing_is_said(rule):
    (said,) = dbjax.run(TASK, dataclasses.replace(ONE, rule=rule)).summary["warnings"]
    assert said.startswith("unchanged parameters: 60 updates left every one as it was")


@pytest.mark.parametrize("wrap", [lambda loss: loss, jax.jit, jax.checkpoint])
def test_parameters_that_the_loss_does_not_read_are_said(wrap):
    """Running statistics are such: no gradient changes them, and decay does."""
    params = TASK.params | {"other": np.ones(2, np.float32)}
    task = dataclasses.replace(TASK, params=params, loss=wrap(squared))
    (said,) = dbjax.run(task, ONE).summary["warnings"]
    assert said.startswith(
        "unread parameters: the loss does not depend on 1 of 2 leaves (params/other), so a rule"
    )


def fixed_dropout(params, batch):
    x, y = batch
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    return jnp.mean(((x * kept) @ params["w"] - y) ** 2)


def unused_draw(params, batch):
    """As where a network is made in the loss, and its initial values are replaced."""
    jax.random.normal(jax.random.key(0), (3,))
    return squared(params, batch)


def dropout(params, batch, key):
    x, y = batch
    kept = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, x.shape)
    return jnp.mean(((x * kept) @ params["w"] - y) ** 2)


@pytest.mark.parametrize("wrap", [lambda loss: loss, jax.jit, jax.checkpoint])
def test_a_loss_that_draws_the_same_numbers_in_every_step_is_said(wrap):
    task = dataclasses.replace(TASK, loss=wrap(fixed_dropout))
    (said,) = dbjax.run(task, ONE).summary["warnings"]
    assert said.startswith("fixed random numbers: Task.loss uses the same ones in every step")
    assert "takes_key=True" in said
    for loss, takes_key in ((dropout, True), (unused_draw, False)):
        task = dataclasses.replace(TASK, loss=wrap(loss), takes_key=takes_key)
        assert dbjax.run(task, ONE).summary["warnings"] == []


def test_losses_that_are_not_finite_are_said_though_gradients_are():
    def loss(params, batch):
        return TASK.loss(params, batch) + jnp.where(batch[0][0, 0] > 1.5, jnp.nan, 0.0)

    task = dataclasses.replace(TASK, loss=loss, batch_size=1)
    bad = int(np.sum(X[:, 0] > 1.5))
    result = dbjax.run(task, dataclasses.replace(ONE, steps=64))
    (said,) = result.summary["warnings"]
    assert said.startswith("losses not finite: by ")
    assert f"{bad} of the last 64 training losses" in said
    assert np.isnan(result.summary["train_loss"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_parameters_that_overflow_are_said(dtype):
    """By a rule: gradients and losses are finite, but for the last one's."""
    rule = optax.stateless(lambda g, _: {"w": jnp.full_like(g["w"], jnp.inf)})
    task = dataclasses.replace(TASK, params={"w": jnp.zeros(3, dtype)})
    result = dbjax.run(task, dataclasses.replace(ONE, rule=rule, steps=1))
    (said,) = result.summary["warnings"]
    assert said.startswith("overflowed parameters: 3 of 3 are not finite")


FOUR = downpour.Config(GOOD, replicas=4, shards=1)


def test_replicas_that_take_no_step_are_said():
    late = dataclasses.replace(FOUR, warm_start_s=30.0)
    (said,) = dbjax.run(TASK, late, until_s=20.0).summary["warnings"]
    assert said == "idle replicas: 3 of 4 took no step (replica/1, replica/2, replica/3)"
    assert dbjax.run(TASK, late, until_s=40.0).summary["warnings"] == []


def dying(node, at_s, back_s=math.inf):
    return dbjax.Cluster(failures=(dbjax.Failure(node=node, at_s=at_s, back_s=back_s),))


@pytest.mark.parametrize(
    ("node", "back_s", "said"),
    [
        ("replica/*", math.inf, "all replicas (since 5.5 s); the run ended at 5.5 s"),
        ("replica/*", 99.0, "all replicas (since 5.5 s); the run ended at 20 s"),
        ("replica/*", 6.5, None),
        ("replica/0", math.inf, None),  # three go on
        ("shard/0", 99.0, "shard/0 (since 5.5 s); the run ended at 20 s"),
    ],
)
def test_a_run_in_which_nobody_is_left_says_so(node, back_s, said):
    nodes = [f"replica/{r}" for r in range(4)] if node == "replica/*" else [node]
    failures = tuple(dbjax.Failure(node=name, at_s=5.5, back_s=back_s) for name in nodes)
    result = dbjax.run(TASK, FOUR, until_s=20.0, cluster=dbjax.Cluster(failures=failures))
    dead = [w for w in result.summary["warnings"] if kind(w) == "dead at the end"]
    assert dead == ([] if said is None else [f"dead at the end: {said}"])


@pytest.mark.parametrize("backups", [0, 1])
@pytest.mark.parametrize("back_s", [6.0, 99.0])
def test_pushes_that_are_lost_are_said(back_s, backups, logged):
    """Where the shard is not back in time, nobody pushes again: it is found out at the end."""
    config = dataclasses.replace(FOUR, shard_backups=backups)
    result = dbjax.run(TASK, config, until_s=20.0, cluster=dying("shard/0", 5.5, back_s))
    lost = result.summary["lost_pushes"]
    assert (lost == 0) == bool(backups)
    said = f"lost pushes: {lost} acknowledged pushes were lost with shards that failed"
    found = [w for w in result.summary["warnings"] if kind(w) == "lost pushes"]
    assert [w.partition(" (")[0] for w in found] == ([said] if lost else [])
    assert list(map(kind, logged())) == kinds(result)


LABELS = np.array([0] * 60 + [1] * 40)


def guessing(accuracy):
    return dataclasses.replace(
        TASK,
        evaluate=lambda params: {"test_accuracy": accuracy},
        most_frequent=dbjax.MostFrequent.of(LABELS),
    )


@pytest.mark.parametrize("accuracy", [0.0, 0.6, 0.69])
def test_an_accuracy_that_a_guess_has_too_is_said_at_the_end(accuracy, logged):
    """Two deviations of a share of 0.6 of 100 are 0.098."""
    result = dbjax.run(guessing(accuracy), ONE, until_s=50.0, evaluate_every_s=5.0)
    assert logged() == result.summary["warnings"]
    (said,) = logged()
    assert said == (
        f"no better than a guess: test_accuracy is {accuracy:.1%}, and 60.0% of 100 examples are "
        "of the most frequent class"
    )
    assert result.summary["most_frequent_class"] == {"share": 0.6, "examples": 100}


@pytest.mark.parametrize("accuracy", [0.7, 1.0, math.nan])
def test_an_accuracy_that_no_guess_has_is_not(accuracy):
    assert dbjax.run(guessing(accuracy), ONE).summary["warnings"] == []


def test_few_examples_do_not_make_a_perfect_run_look_bad():
    few = dbjax.MostFrequent.of([2, 2, 2, 1])
    assert (few.share, few.examples) == (0.75, 4)
    assert not few.explains(1.0)
    assert few.explains(0.75)
    assert dbjax.MostFrequent.of([7, 7]).explains(1.0)  # one class shows nothing


def test_what_cannot_be_held_against_a_guess_is_refused():
    with pytest.raises(ValueError, match=r"give a Task\.evaluate"):
        dataclasses.replace(TASK, most_frequent=dbjax.MostFrequent(0.5, 10))
    other = dataclasses.replace(guessing(0.5), most_frequent=dbjax.MostFrequent(0.5, 10, "score"))
    with pytest.raises(ValueError, match=r"'score' is not among .* returns: test_accuracy"):
        dbjax.run(other, ONE)
    for wrong in ({"share": 0.0, "examples": 1}, {"share": 0.5, "examples": 0}):
        with pytest.raises(ValueError, match="MostFrequent"):
            dbjax.MostFrequent(**wrong)


def test_an_interrupted_run_is_not_judged_by_its_end(logged):
    """SIGINT at the first evaluation, before any update."""

    def interrupt(row):
        trace.listeners.remove(interrupt)
        signal.raise_signal(signal.SIGINT)

    trace = dbjax.Trace(listeners=[interrupt])
    result = dbjax.run(guessing(0.5), ONE, trace=trace)
    assert result.summary["interrupted"] == "SIGINT"
    assert result.summary["updates"] == 0
    assert logged() == result.summary["warnings"] == []
