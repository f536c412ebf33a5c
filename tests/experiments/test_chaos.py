"""A run whose nodes are killed, in virtual time."""

import dataclasses
import json

import pytest

import dbjax
from dbjax.monitoring.fault_injection import Chaos, kills
from experiments import chaos
from experiments.command_line import command
from tests.parameter_server.test_failover_client import METHODS, TASK
from tests.processes import LIMIT_S

ARGUMENTS = ["--config=configs/digits_downpour.py:smoke", "--runtime=virtual"]


def test_the_command_kills_recovers_and_loses_nothing(tmp_path, capsys):
    given = [*ARGUMENTS, "--kill-every=1s", "--for=8s", f"--workdir={tmp_path}"]
    assert chaos.main(given) == 0
    said = capsys.readouterr().out
    assert "no acknowledged push was lost" in said
    assert {p.name for p in tmp_path.iterdir()} == {"undisturbed", "disturbed"}


def test_without_backups_what_is_lost_is_counted(tmp_path, capsys):
    given = [*ARGUMENTS, "--kill-every=1s", "--for=8s", "--backups=0", f"--workdir={tmp_path}"]
    assert chaos.main(given) in (0, 1)  # the accuracy may suffer
    (lost,) = (line for line in capsys.readouterr().out.splitlines() if "lost pushes" in line)
    counted = int(lost.split("│")[-2].replace(",", ""))
    summary = json.loads((tmp_path / "disturbed" / "summary.json").read_text())
    assert counted == summary["lost_pushes"] > 0


def test_without_backups_every_push_is_applied_or_counted_as_lost():
    machine = dbjax.Machine(mean_time_to_repair_s=0.3)
    config = dataclasses.replace(METHODS["downpour [4]"], replicas=3, shards=1, steps=50)
    cluster = dbjax.Cluster(compute_s=0.1, latency_s=1e-3, machine=machine)
    for seed in range(5):
        found = dbjax.run(TASK, config, cluster=cluster, background=Chaos(0.5, seed)).summary
        assert found["updates"] + found["lost_pushes"] == 150
        assert found["lost_pushes"] > 0


def test_nobody_killed_is_no_success(tmp_path, capsys):
    given = [*ARGUMENTS, "--kill-every=10s", "--for=3s", f"--workdir={tmp_path}"]
    assert chaos.main(given) == 1
    assert "no node was killed" in capsys.readouterr().out


def test_chaos_spares_the_last_copy():
    machine = dbjax.Machine(mean_time_to_repair_s=0.3, bandwidth_bytes_per_s=1e5)
    config = dataclasses.replace(
        METHODS["downpour [4]"], replicas=2, shards=1, shard_backups=1, steps=150
    )
    cluster = dbjax.Cluster(compute_s=0.1, latency_s=1e-3, machine=machine)
    result = dbjax.run(TASK, config, cluster=cluster, background=Chaos(0.2))
    assert result.summary["lost_pushes"] == 0
    assert result.summary["updates"] == 300
    found = kills(result.trace.rows)
    assert {kill.node.split("/")[0] for kill in found} == {"replica", "shard"}
    assert len(found) == result.summary["deaths"] > 20
    dead = set()
    for row in result.trace.rows:
        if row.get("event") in ("died", "returned") and row["node"].startswith("shard"):
            (dead.add if row["event"] == "died" else dead.discard)(row["node"])
            assert len(dead) < 2


def test_a_time_to_repair_is_for_nodes_that_are_killed(tmp_path, monkeypatch):
    """In a run where nothing fails it has no effect, and here it has one if time is virtual."""

    def run(config, workdir, label, background=None):
        raise RuntimeError(config.cluster.machine.mean_time_to_repair_s)

    monkeypatch.setattr(chaos, "run_config", run)
    given = ["--config.cluster.machine.mean_time_to_repair_s=0.25", f"--workdir={tmp_path}"]
    with pytest.raises(RuntimeError, match=r"0\.25"):
        chaos.main([*ARGUMENTS, *given])
    with pytest.raises(ValueError, match="it needs runtime=virtual"):
        chaos.main([ARGUMENTS[0], *given])


def test_nobody_can_be_killed_in_threads():
    endless = dataclasses.replace(METHODS["downpour [4]"], steps=None)
    with pytest.raises(ValueError, match="use virtual or ray"):
        dbjax.run(TASK, endless, runtime="threads", background=Chaos(0.01), until_s=LIMIT_S)


@pytest.mark.parametrize(
    ("given", "text"),
    [(["--for=soon"], "--for=soon must be a time"), (["--kill-every=-1s"], "must be above 0"),
     (["--config=configs/quickstart.py", "--kil-every=3"], "no flag --kil-every"),
     ([], "--config")],
)  # fmt: skip
def test_mistakes_are_one_line(given, text, capsys, monkeypatch):
    arguments = (
        given
        if not given or given[0].startswith("--config")
        else [ARGUMENTS[0], "--workdir=x", *given]
    )
    with pytest.raises(SystemExit) as ended:
        command(lambda _: chaos.main(arguments))
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_threads_are_refused_before_anything_is_trained(tmp_path):
    given = ["--config=configs/digits_downpour.py:smoke", "--runtime=threads", "--for=5s"]
    with pytest.raises(ValueError, match="threads cannot be killed"):
        chaos.main([*given, f"--workdir={tmp_path / 'never'}"])
    assert not (tmp_path / "never").exists()
