"""Whole runs on Ray: disturbed, interrupted and taken up, replayed."""

import dataclasses
import math

import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sandblaster
from dbjax.checkpoint import Checkpoints
from dbjax.monitoring.fault_injection import Chaos, kills
from dbjax.monitoring.push_account import account_for_pushes
from experiments import replay, run
from tests import test_keys
from tests.algorithms import logistic
from tests.processes import LIMIT_S
from tests.test_conformance import TASK
from tests.test_structures import task as task_of_structure

pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.usefixtures("cluster"),
]
DOWNPOUR = downpour.Config(optax.sgd(0.03), replicas=2, shards=1)


class Until:
    """A node whose sleep ends the run once the rows of its trace have what is asked for."""

    def __init__(self, enough, node, machines):
        self.enough, self.node, self.machines = enough, node, machines

    def __getattr__(self, name):
        return getattr(self.node, name)

    def sleep(self, seconds):
        if self.enough(self.machines._trace.rows):
            self.machines.stop()
        return self.node.sleep(seconds)


def steps(rows):
    return sum("loss" in row for row in rows)


def test_chaos_loses_nothing():
    def enough(rows):
        back = [kill for kill in kills(rows) if math.isfinite(kill.back_after_s)]
        return len(kills(rows)) >= 2 and back and steps(rows) > 1000

    async def beside(node, machines):
        await Chaos(1.5, seed=3)(Until(enough, node, machines), machines)

    config, lines = dataclasses.replace(DOWNPOUR, shard_backups=1), []
    result = dbjax.run(
        TASK, config, runtime="ray", until_s=LIMIT_S, background=beside,
        log=dbjax.EventLog(lines.append),
    )  # fmt: skip
    found = kills(result.trace.rows)
    recovered = [kill for kill in found if math.isfinite(kill.back_after_s)]
    assert len(found) == result.summary["deaths"] >= 2
    assert len(recovered) == result.summary["returns"] >= 1
    assert result.summary["lost_pushes"] == 0
    script = dbjax.Script("".join(lines).splitlines(keepends=True))
    account = account_for_pushes(script)
    assert (account.lost, account.doubled) == ([], [])
    assert account.acknowledged > 1000
    assert dbjax.replay(TASK, config, script).params_sha256 == result.summary["params_sha256"]
    assert result.summary["full_loss"] < 0.1


def test_divergence_is_said_once(caplog):
    config = dataclasses.replace(DOWNPOUR, rule=optax.sgd(1e30), replicas=1, steps=40)
    result = dbjax.run(TASK, config, runtime="ray")
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    kinds = [warning.partition(":")[0] for warning in said]
    assert kinds == [warning.partition(":")[0] for warning in result.summary["warnings"]]
    assert "diverged" in kinds
    assert result.summary["refused_pushes"] > 0


def test_sandblasters_coordinator_goes_on(float64):
    async def kill(node, machines):
        await node.sleep(0.3)
        machines.kill("coordinator")

    config, lines = sandblaster.Config(replicas=2, shards=2, steps=8, stops=logistic.NEVER), []
    log = dbjax.EventLog(lines.append)
    result = dbjax.run(logistic.task(), config, runtime="ray", background=kill, log=log)
    script = dbjax.Script("".join(lines).splitlines(keepends=True))
    again = dbjax.replay(logistic.task(), config, script)
    assert again.params_sha256 == result.summary["params_sha256"]
    assert result.summary["deaths"] == result.summary["returns"] == 1
    assert logistic.difference(result.params, logistic.one_process()) < 1e-12


def test_a_run_that_was_stopped_goes_on(tmp_path):
    async def stop(node, machines):
        node = Until(lambda rows: steps(rows) > 20, node, machines)
        while True:
            await node.sleep(0.02)

    config = dataclasses.replace(DOWNPOUR, replicas=1, steps=4000)
    with Checkpoints(tmp_path) as checkpoints:
        begun = dbjax.run(TASK, config, runtime="ray", background=stop, checkpoints=checkpoints)
        middle = checkpoints.latest()
    assert 0 < begun.summary["updates"] < 4000
    result = dbjax.run(TASK, config, runtime="ray", resume=middle)
    assert result.summary["updates"] == 4000
    assert result.summary["time_s"] > begun.summary["time_s"] > 0
    whole = dbjax.run(TASK, config)
    assert result.summary["params_sha256"] == whole.summary["params_sha256"]


def test_every_mini_batch_has_its_key():
    result = dbjax.run(
        test_keys.task(test_keys.drawn), test_keys.CONFIGS["downpour"], runtime="ray"
    )
    test_keys.require_recipe(result, replicas=3, steps=12)


@pytest.mark.parametrize("name", ["mixed", "NNX state"])
def test_parameters_of_other_structures_than_dicts(name):
    config = downpour.Config(optax.adam(0.01), replicas=1, shards=2, steps=8)
    virtual, ray = (
        dbjax.run(task_of_structure(name), config, runtime=runtime)
        for runtime in ("virtual", "ray")
    )
    assert ray.summary["params_sha256"] == virtual.summary["params_sha256"]
    assert type(ray.params) is type(virtual.params)


def test_a_class_that_other_processes_do_not_know_is_refused():
    """Its module is not imported there, so nobody registers it."""
    config = downpour.Config(replicas=1, shards=1, steps=1)
    with pytest.raises(RuntimeError, match=r"Data.*in a module that every process can import"):
        dbjax.run(task_of_structure("dataclass"), config, runtime="ray")


def test_four_replicas_are_replayed_by_command(tmp_path, capsys):
    given = ["--config=configs/quickstart.py", "--config.runtime=ray", "--config.until_s=none",
             "--config.options.steps=40", "--config.options.replicas=4"]  # fmt: skip
    assert run.main([*given, f"--workdir={tmp_path}"]) == 0
    assert replay.main([f"--workdir={tmp_path}"]) == 0
    assert "the same bytes" in capsys.readouterr().out
