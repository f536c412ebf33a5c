"""What a run can be resumed with, and what is refused in a line that names what differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax import optim
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.checkpoint import Checkpoints
from tests.test_conformance import CLUSTER, TASK, X, Y

SGD = downpour.Config(optax.sgd(0.03), replicas=2, shards=2, steps=12)
MOMENTUM = dataclasses.replace(SGD, rule=optax.sgd(0.03, momentum=0.9))
BATCH = sandblaster.Config(replicas=2, shards=2, steps=4)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """Checkpoints of runs with each of some configs, that were stopped."""
    found = {}
    for name, config in {"sgd": SGD, "momentum": MOMENTUM, "batch": BATCH}.items():
        with Checkpoints(tmp_path_factory.mktemp(name)) as checkpoints:
            dbjax.run(TASK, config, cluster=CLUSTER, until_s=0.7, checkpoints=checkpoints)
            found[name] = checkpoints.latest()
    return found


def task_of(params):
    def loss(params, batch):
        weights = jax.tree.leaves(params)[0].astype(jnp.float32)
        return jnp.mean((batch[0] @ weights[: X.shape[1]] - batch[1]) ** 2)

    return dbjax.Task(params, loss, (X, Y), batch_size=16)


OTHERS = {
    "adam": ("sgd", TASK, dataclasses.replace(SGD, rule=optax.adam(0.1)),
             "rule/0 is EmptyState, here it is ScaleByAdamState"),
    "momentum": ("sgd", TASK, MOMENTUM, "rule/0 is EmptyState, here it is TraceState"),
    "no momentum": ("momentum", TASK, SGD, "rule/0 is TraceState, here it is EmptyState"),
    "shorter": ("momentum", TASK, dataclasses.replace(SGD, rule=optax.trace(0.9)),
                "rule is tuple, here it is TraceState"),
    "another with the same state": ("sgd", TASK, dataclasses.replace(SGD, rule=optax.sign_sgd(0.1)),
        r"the transforms of rule is chain\(.*\), here it is chain\(.*sign"),
    "nesterov": ("momentum", TASK, dataclasses.replace(
        SGD, rule=optax.sgd(0.03, momentum=0.9, nesterov=True)), "the transforms of rule .*=False"),
    "accumulator": ("momentum", TASK, dataclasses.replace(
        SGD, rule=optax.sgd(0.03, momentum=0.9, accumulator_dtype=jnp.bfloat16)),
        r"rule/0/trace/w is float32\[12\], here it is bfloat16\[12\]"),
    "algorithm": ("sgd", TASK, sgd.Config(optax.sgd(0.03), replicas=2, shards=2, steps=9),
                  "algorithm is dbjax.algorithms.downpour, here it is dbjax.algorithms.sgd"),
    "method": ("batch", TASK, dataclasses.replace(BATCH, method=optim.ConjugateGradients()),
               "method is Lbfgs, here it is ConjugateGradients"),
    "shape": ("sgd", task_of({"w": jnp.zeros(13)}), SGD,
              r"params/w is float32\[12\], here it is float32\[13\]"),
    "dtype": ("sgd", task_of({"w": jnp.zeros(12, jnp.bfloat16)}), SGD,
              r"params/w is float32\[12\], here it is bfloat16\[12\]"),
    "name": ("sgd", task_of({"v": jnp.zeros(12)}), SGD, "params/v is not there, here it is float"),
    "structure": ("sgd", task_of([jnp.zeros(12)]), SGD, "params is dict, here it is list"),
}  # fmt: skip


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_in_one_line(name, runtime, left):
    which, task, config, said = OTHERS[name]
    cluster = CLUSTER if runtime == "virtual" else None
    with pytest.raises(ValueError, match=f"^the checkpoint is of another run: {said}") as refused:
        dbjax.run(task, config, runtime=runtime, cluster=cluster, resume=left[which])
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(
        "resume with the same setting, or start a new run in another workdir"
    )


def test_another_rate_is_none_of_that(left):
    config = dataclasses.replace(SGD, rule=optax.sgd(0.01))
    assert dbjax.run(TASK, config, cluster=CLUSTER, resume=left["sgd"]).summary["updates"] > 0


@pytest.mark.parametrize("wrong", ["a/path", 3, {}], ids=repr)
def test_what_is_no_checkpoint_is_refused(wrong):
    with pytest.raises(TypeError, match=r"resume=.* is a .*; give the state of a checkpoint"):
        dbjax.run(TASK, SGD, cluster=CLUSTER, resume=wrong)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    kernel: object
    activation: object = dataclasses.field(metadata={"static": True}, default=jnp.tanh)


@pytest.mark.parametrize("shards", [2, 3])
def test_what_only_the_program_knows_of_its_parameters_is_found_again(shards, tmp_path):
    """A static field of a layer is a function: a checkpoint cannot hold it, the rule's state does.

    Exactly where nothing has changed; and what shards know, for another number of them.
    """
    params = {"a": Layer(jnp.full((12, 3), 0.1)), "b": [Layer(jnp.ones((3, 1)), jnp.abs)]}

    def loss(params, batch):
        hidden = params["a"].activation(batch[0] @ params["a"].kernel)
        out = params["b"][0].activation(hidden @ params["b"][0].kernel)
        return jnp.mean((out[:, 0] - batch[1]) ** 2)

    task = dbjax.Task(params, loss, (X, Y), batch_size=16)
    config = dataclasses.replace(MOMENTUM, rule=optax.adam(0.01))
    whole = dbjax.run(task, config, cluster=CLUSTER)
    with Checkpoints(tmp_path) as checkpoints:
        dbjax.run(task, config, cluster=CLUSTER, until_s=0.7, checkpoints=checkpoints)
        found = checkpoints.latest()
    assert found.exact is not None
    again = dbjax.run(
        task, dataclasses.replace(config, shards=shards), cluster=CLUSTER, resume=found
    )
    assert again.summary["updates"] == whole.summary["updates"]
    assert jax.tree.structure(again.params) == jax.tree.structure(params)
    if shards == config.shards:
        assert again.summary["params_sha256"] == whole.summary["params_sha256"]
    else:
        losses = [float(loss(r.params, (X, Y))) for r in (again, whole)]
        np.testing.assert_allclose(
            *losses, rtol=0.2
        )  # other draws of time, the same number of steps


def test_what_cannot_be_written_is_a_warning_and_the_run_is_whole(tmp_path, caplog):
    """The rule's state has something that neither a file nor the parameters have."""

    def init(params):
        return Layer(jnp.zeros(()), lambda: None)

    rule = optax.GradientTransformation(init, lambda g, s, p=None: (g, s))
    config = dataclasses.replace(SGD, rule=optax.chain(rule, optax.sgd(0.03)))
    with Checkpoints(tmp_path) as checkpoints:
        result = dbjax.run(TASK, config, cluster=CLUSTER, checkpoints=checkpoints)
        assert checkpoints.latest() is None
    assert result.summary["updates"] == 24
    said = [r.getMessage() for r in caplog.records if "could not be written" in r.getMessage()]
    assert len(said) == 1
    assert "cannot hold a builtins.function" in said[0]


def test_a_rule_may_go_on_with_another_rate(left):
    slower = dataclasses.replace(MOMENTUM, rule=optax.sgd(0.003, momentum=0.8))
    result = dbjax.run(TASK, slower, runtime="threads", resume=left["momentum"])
    assert result.summary["updates"] > 0
