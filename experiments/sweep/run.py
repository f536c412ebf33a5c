"""`sweep`: searches a space for the best config, and resumes in the same workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import sqlite3
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import ml_collections
import optuna
from sqlalchemy.exc import SQLAlchemyError

from dbjax.arguments import nearest, require_at_least
from dbjax.errors import one_line
from dbjax.files import lock_directory, prepare, read_json, write_json
from dbjax.run_dir.provenance import versions
from dbjax.signals import on_interrupt
from experiments.defaults import defaults
from experiments.folders import STUDY, SWEEP, require_place
from experiments.sweep.driver import Driver
from experiments.sweep.output import write
from experiments.sweep.plan import LAG, Plan
from experiments.sweep.pool import Pool, Process, Worker
from experiments.sweep.progress import shown
from experiments.sweep.results import SweepResult, found, went_wrong
from experiments.sweep.space import Space

ON = ("processes", "ray")


def sweep(
    config: ml_collections.ConfigDict,
    space: Space,
    workdir: str | Path,
    *,
    trials: int | None = None,
    jobs: int = 1,
    on: str = "processes",
    label: str = "",
    fixed: Collection[str] = (),
) -> SweepResult:
    """Searches for the best values of config fields.

    Repeat the same call to resume an interrupted sweep, or repeat it with more `trials` to extend
    it. In virtual time, the trials are bit-for-bit the same, number by number, however often the
    sweep is interrupted and however many jobs run at once.

    Args:
      config: the config of every trial, except for the fields of the space.
      space: the fields and their values, from `load_space(file)` or made in Python.
      workdir: receives study.db (the Optuna study) and a folder per trial; and at the end best.py,
        trials.csv and the pictures.
      trials: the total number of trials, or None for the number that the space sets.
      jobs: the number of trials that run at once, each in a process that uses one core.
      on: "processes" for processes on this machine, or "ray" for actors on the Ray cluster at
        `config.ray.address`.
      label: a name for what is tuned, used in captions; by default the algorithm.
      fixed: names of config fields that were set on the command line. They are assigned together
        with the fields of the space, because they may be arguments of something that the space
        names.

    Returns:
      The result; if the sweep was interrupted, the result so far.

    Raises:
      ValueError: an argument is invalid, a field of the space cannot be set, or the workdir holds
        something else, such as a different sweep.
    """
    require_at_least("", 1, jobs=jobs)
    if on not in ON:
        raise ValueError(f"unknown on={on}{nearest(on, ON)}")
    space = dataclasses.replace(space, trials=trials) if trials is not None else space
    address, config = config.ray.address, _of_trials(config, on)
    plan = Plan(config, space, tuple(fixed), lag=max(LAG, jobs))
    require_place(workdir, "a sweep")
    workdir = prepare(workdir)
    with lock_directory(workdir):
        plan = _resumed(plan, workdir)
        study = _opened(plan, workdir)
        of_sql = SQLAlchemyError, optuna.exceptions.StorageInternalError
        with _naming(workdir / STUDY, *of_sql), on_interrupt() as interrupted:
            start = _starts(on, address, workdir)
            with start as begin, Pool(begin, jobs) as pool, shown(plan, study) as watcher:
                Driver(plan, study, workdir / "trials", pool, watcher).run(space.count, interrupted)
            result = found(plan, study, interrupted.by, label or config.algorithm)
        if not result.interrupted:
            write(result, workdir)
            if wrong := went_wrong(result.rows):
                logging.getLogger("dbjax").warning("%s", wrong)
    return result


def _of_trials(config: ml_collections.ConfigDict, on: str) -> ml_collections.ConfigDict:
    """Returns the config without the Ray address, which is for the workers and not for trials."""
    first = defaults().ray.address
    if on != "ray" and config.ray.address != first:
        raise ValueError(f"ray.address={config.ray.address} has no effect: it needs on=ray")
    config = config.copy_and_resolve_references()
    config.ray.address = first
    return config


def _resumed(plan: Plan, workdir: Path) -> Plan:
    """Resumes the plan that is stored in the workdir, or stores a new one there.

    Returns:
      The plan with the lag that the sweep was begun with.

    Raises:
      ValueError: the workdir holds a different sweep, or a damaged one.
    """
    path = workdir / SWEEP
    if not path.exists():
        if (workdir / STUDY).exists():
            raise ValueError(
                f"workdir {str(workdir)!r} holds {STUDY} without {SWEEP}: give another "
                "--workdir, or delete it"
            )
        write_json(path, plan.described() | {"lag": plan.lag, "versions": versions()})
        return plan
    have = read_json(path, "config", "space", "versions", "lag", of="sweep")
    if difference := plan.difference({name: have[name] for name in ("config", "space")}):
        raise ValueError(
            f"workdir {str(workdir)!r} holds a sweep with {difference}: "
            "give another --workdir, or delete that one"
        )
    if have["versions"] != versions():
        logging.getLogger("dbjax").warning(
            "sweep begun with other package versions (see %s): last digits may differ", path
        )
    return dataclasses.replace(plan, lag=have["lag"])


def _opened(plan: Plan, workdir: Path) -> optuna.Study:
    path = workdir / STUDY
    with warnings.catch_warnings(), _naming(path, Exception):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        _require_sound(path)
        study = optuna.create_study(
            storage=f"sqlite:///{path.resolve()}",
            study_name="sweep",
            direction=plan.direction,
            load_if_exists=True,
        )
        study.set_metric_names([plan.words])
        study.get_trials(deepcopy=False)
    return study


def _require_sound(path: Path) -> None:
    """Raises `sqlite3.DatabaseError` if a file is not a database, or is damaged."""
    if path.exists():
        if not path.read_bytes().startswith(b"SQLite format 3\0"):  # SQLite accepts an empty file
            raise sqlite3.DatabaseError("file is not a database")
        with contextlib.closing(sqlite3.connect(path)) as database:
            (message,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if message != "ok":
                raise sqlite3.DatabaseError(message)


@contextlib.contextmanager
def _naming(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turns the errors of a database, which may be pages of SQL, into one line with its path."""
    try:
        yield
    except errors as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(
            f"{str(path)!r} cannot be used ({one_line(cause)}): make room if the disk is full; "
            "else delete it to try all trials again, or give another --workdir"
        ) from error


@contextlib.contextmanager
def _starts(on: str, address: str, workdir: Path) -> Iterator[Callable[[], Worker]]:
    """Yields a function that starts a worker."""
    if on == "ray":
        from experiments.sweep.on_ray import actors

        with actors(address) as start:
            yield start
    else:
        yield functools.partial(Process, workdir / "workers.log")
