"""The schedule of a run: from its config, or from the event log of a run in real time."""

import numpy as np
import pytest

import dbjax
from experiments import run, schedule
from experiments.command_line import load_config

QUICKSTART = "configs/quickstart.py:smoke"


def test_it_is_that_of_the_run(tmp_path, capsys):
    command = [f"--config={QUICKSTART}", f"--workdir={tmp_path / 'found'}"]
    assert schedule.main(command) == 0
    found = dbjax.Schedule.load(tmp_path / "found" / "schedule.npz")
    said = capsys.readouterr().out
    assert found.digest[:16] in said
    assert f"{found.gradients:,}" in said
    assert (tmp_path / "found" / "schedule.png").stat().st_size > 10_000
    result = run.run_config(load_config(QUICKSTART), tmp_path / "run", "quickstart")
    applied = (found.position >= 0).sum(0)
    assert result.summary["updates"] == applied.mean()
    values, counts = np.unique(found.staleness()[found.position >= 0], return_counts=True)
    measured = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    assert measured == dict(sorted(result.staleness_histogram.items()))


def test_a_run_in_threads_has_one_too(tmp_path, capsys):
    config = load_config(QUICKSTART)
    config.runtime, config.until_s, config.options.replicas = "threads", None, 2
    config.options.steps = 12
    run.run_config(config, tmp_path / "run", "threads")
    assert schedule.main([f"--of={tmp_path / 'run'}", f"--workdir={tmp_path / 'found'}"]) == 0
    found = dbjax.Schedule.load(tmp_path / "found" / "schedule.npz")
    assert (found.replicas, found.shards, found.gradients) == (2, 3, 24)
    assert np.all(np.diff(np.sort(found.position, axis=0), axis=0) == 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --workdir=DIR, and either --config=FILE or --of=RUN"),
        (["--workdir=DIR", "--of=RUN", f"--config={QUICKSTART}"], "needs --workdir=DIR, and eith"),
        (["--workdir=DIR", f"--config={QUICKSTART}", "--config.runtime=threads"],
         "runtime='threads' is timed by real machines"),
        (["--workdir=DIR", "--of=RUN"], "cannot be read"),
        (["--workdir=DIR", "--config=configs/quadratic_sandblaster.py:smoke"],
         "no schedule can be made of this run: it looks at examples"),
    ],
)  # fmt: skip
def test_what_has_none_is_refused(arguments, message, tmp_path):
    given = [
        one.replace("DIR", f"{tmp_path}/new").replace("RUN", f"{tmp_path}") for one in arguments
    ]
    with pytest.raises(ValueError, match=message):
        schedule.main(given)
    assert not (tmp_path / "new").exists()
