"""From costs to seconds: messages counted by hand, and runs whose clock comes from costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.costs.program import Collective, Costs, Memory, ProgramPhase, costs
from dbjax.costs.speedup import CompiledSteps, phased_step, predicted
from dbjax.optim import Lbfgs

MEMORY = Memory(0, 0, 0, 0)
CLUSTER = dbjax.Cluster(
    machine=dbjax.Machine(flops_per_s=1e3, bandwidth_bytes_per_s=1e4),
    latency_s=1.0,
    message_s=0.25,
)


def of(*collectives, flops=0.0):
    return Costs(8, flops, 0.0, (ProgramPhase(flops, 0.0, collectives),), MEMORY)


@pytest.mark.parametrize(
    ("collective", "seconds"),
    [
        (Collective("all-gather", 2_000, 16_000, 8), 1 + 7 * 0.25 + 7 * 0.2),
        (Collective("reduce-scatter", 16_000, 2_000, 8), 1 + 7 * 0.25 + 7 * 0.2),
        (Collective("all-reduce", 16_000, 16_000, 8), 2 + 14 * 0.25 + 14 * 0.2),
        (Collective("all-reduce", 1_000, 1_000, 8), 6 * (1 + 0.25 + 0.1)),  # up and down a tree
        (Collective("all-reduce", 1_000, 1_000, 5), 6 * (1 + 0.25 + 0.1)),
        (Collective("collective-permute", 5_000, 5_000, 2, ((0, 1),)), 1 + 0.25 + 0.5),
        (Collective("all-gather", 2_000, 2_000, 1), 0.0),  # with itself alone
    ],
)
def test_messages_by_hand(collective, seconds):
    assert predicted(of(collective), CLUSTER).upper_s == pytest.approx(seconds)


def test_collectives_of_a_phase_share_their_latency():
    halo = Collective("collective-permute", 1_000, 1_000, 2, ((0, 1),))
    assert predicted(of(halo, halo), CLUSTER).upper_s == pytest.approx(1 + 2 * (0.25 + 0.1))


def test_computation_is_by_flops():
    found = predicted(of(flops=500.0), CLUSTER)
    assert (found.lower_s, found.upper_s) == (0.5, 0.5)
    assert phased_step(of(flops=500.0)).machines == 8


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] - y) ** 2)


X = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
TASK = dbjax.Task({"w": jnp.zeros(10)}, loss, (X, X @ np.arange(10.0, dtype=np.float32)), 8)


def test_a_runs_clock_can_come_from_what_its_program_costs():
    step = jax.jit(jax.value_and_grad(loss))
    whole = costs(step, {"w": jnp.zeros(10)}, (jnp.zeros((8, 10)), jnp.zeros(8)))
    machine = dbjax.Machine(flops_per_s=1e3)
    cluster = dbjax.Cluster(compute_s="costs", machine=machine)
    result = dbjax.run(TASK, sgd.Config(rule=optax.sgd(0.1), steps=5), cluster=cluster)
    assert whole.flops > 2 * 2 * 8 * 10  # forward and backward
    # The step's program also joins the shard's slice, which has no FLOPs.
    assert result.summary["time_s"] == pytest.approx(5 * whole.flops / 1e3)


def test_a_slower_machine_takes_longer():
    def time_s(flops_per_s):
        cluster = dbjax.Cluster(
            compute_s="costs", machine=dbjax.Machine(flops_per_s=flops_per_s, sigma=0.0)
        )
        config = downpour.Config(rule=optax.sgd(0.1), replicas=2, shards=1, steps=3)
        return dbjax.run(TASK, config, cluster=cluster).summary["time_s"]

    assert time_s(1e3) == pytest.approx(2 * time_s(2e3))


@pytest.mark.parametrize("order", ["free", "fixed"])
def test_portions_take_what_they_cost(order):
    """64 examples in 8 portions; twice as fast machines take half the time."""

    def time_s(flops_per_s):
        machine = dbjax.Machine(flops_per_s=flops_per_s)
        cluster = dbjax.Cluster(compute_s="costs", machine=machine)
        config = sandblaster.Config(Lbfgs(), replicas=2, steps=2, order=order, backup_after=1e9)
        return dbjax.run(TASK, config, cluster=cluster).summary["time_s"]

    assert time_s(1e3) == pytest.approx(2 * time_s(2e3))
    assert time_s(1e3) > 0


def test_costs_are_of_the_batch_at_hand():
    steps, fn = CompiledSteps(), jax.jit(jax.grad(loss))
    small, large = (
        steps(fn, ({"w": jnp.zeros(10)}, (jnp.zeros((n, 10)), jnp.zeros(n)))) for n in (8, 16)
    )
    assert sum(p.flops for p in large.phases) > 1.5 * sum(p.flops for p in small.phases)
    assert steps(fn, ({"w": jnp.zeros(10)}, (jnp.zeros((8, 10)), jnp.zeros(8)))) is small


def test_what_is_not_compiled_as_a_whole_has_no_costs():
    with pytest.raises(ValueError, match="not a jitted function; give seconds instead"):
        CompiledSteps()(len, ((1, 2),))
