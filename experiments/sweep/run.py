"""`sweep`: a config and a space in, the best config out; goes on in its workdir."""

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
from experiments.sweep.plan import LAG, Plan
from experiments.sweep.pool import Pool, Process, Worker
from experiments.sweep.results import SweepResult, found, went_wrong, write
from experiments.sweep.shown import shown
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
    """Tries values of fields of a config.

    The same call again goes on where it was interrupted, or to more trials. In virtual time all
    trials are the same, number by number and bit by bit, however often that happens and
    however many jobs there are.

    Args:
      config: of each trial, but for the fields of the space.
      space: `load_space(file)`, or made in Python.
      workdir: gets study.db (of Optuna), a folder for each trial, and at the end best.py,
        trials.csv, and pictures.
      trials: how many there are to be at the end; None: as the space says.
      jobs: trials at once, each in a process that uses one core.
      on: processes of this machine, or of those that Ray knows at `config.ray.address`.
      label: what is tuned, for captions.
      fixed: fields of the config that were set apart: they are set together with those of the
        space, since they may be arguments of what that names.

    Raises:
      ValueError: something does not fit, or another sweep lies in the workdir.
    """
    require_at_least("", 1, jobs=jobs)
    if on not in ON:
        raise ValueError(f"no on={on}{nearest(on, ON)}")
    space = dataclasses.replace(space, trials=trials) if trials is not None else space
    address, config = config.ray.address, _of_trials(config, on)
    plan = Plan(config, space, tuple(fixed), lag=max(LAG, jobs))
    require_place(workdir, "a sweep")
    workdir = prepare(workdir)
    with lock_directory(workdir):
        plan = _taken_up(plan, workdir)
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
    """Without the address of the workers, which is none of a trial's."""
    first = defaults().ray.address
    if on != "ray" and config.ray.address != first:
        raise ValueError(f"ray.address={config.ray.address} has no effect: it needs on=ray")
    config = config.copy_and_resolve_references()
    config.ray.address = first
    return config


def _taken_up(plan: Plan, workdir: Path) -> Plan:
    """The plan, as far as it was made before; a new one is written down.

    Raises:
      ValueError: the workdir holds another.
    """
    path = workdir / SWEEP
    if not path.exists():
        if (workdir / STUDY).exists():
            raise ValueError(
                f"workdir {str(workdir)!r} holds a {STUDY} without {SWEEP}: give another "
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
            "begun with other versions (see %s): values may differ in the last digits", path
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
    """Raises an error of SQLite where a database is none, or is damaged."""
    if path.exists():
        if not path.read_bytes().startswith(b"SQLite format 3\0"):  # it takes an empty file for one
            raise sqlite3.DatabaseError("file is not a database")
        with contextlib.closing(sqlite3.connect(path)) as database:
            (said,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if said != "ok":
                raise sqlite3.DatabaseError(said)


@contextlib.contextmanager
def _naming(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """What a database says in pages of SQL, in a line."""
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
    """How a worker is started."""
    if on == "ray":
        from experiments.sweep.on_ray import actors

        with actors(address) as start:
            yield start
    else:
        yield functools.partial(Process, workdir / "workers.log")
