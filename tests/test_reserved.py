"""Names of numbers of ours: none is left out of those that a user's metric may not have."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.monitoring.metrics import RESERVED
from dbjax.run_dir import RunWriter

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def loss(params, batch):
    return jnp.mean((batch @ params["w"] - 1) ** 2)


def task(**metrics):
    return dbjax.Task({"w": jnp.zeros(4)}, loss, X, 8, lambda params: {"mine": 0.5} | metrics)


CLUSTER = dbjax.Cluster(  # replica/1 dies and comes back; cards are busy
    compute_s=0.1,
    machine=dbjax.Machine(bandwidth_bytes_per_s=1e4),
    failures=(dbjax.Failure("replica/1", 0.35, 0.55),),
)
CONFIGS = {
    "downpour": downpour.Config(optax.sgd(0.01), replicas=2, shards=2, steps=20),
    "sgd": sgd.Config(optax.sgd(0.01), replicas=2, shards=2, steps=20),
    "sandblaster": sandblaster.Config(replicas=2, shards=2, steps=3),
}


@pytest.mark.parametrize("method", CONFIGS)
def test_all_of_rows_and_summaries_are_reserved(method, tmp_path):
    options = {"cluster": CLUSTER, "evaluate_every_s": 0.5}
    result = dbjax.run(task(), CONFIGS[method], **options)
    with RunWriter(tmp_path, {}, clock="virtual") as files:
        files.summarise(result)
    rows = set().union(*result.trace.rows)
    written = json.loads((tmp_path / "summary.json").read_text()).keys()
    assert "cards_busy_s" in rows
    assert "event" in rows
    assert (rows | result.summary.keys() | written) - RESERVED == {"mine"}


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_metric_by_a_reserved_name_is_refused(name):
    with pytest.raises(ValueError, match=f"evaluate returns {name!r}, which dbjax records itself"):
        dbjax.run(task(**{name: 1.0}), CONFIGS["downpour"])
