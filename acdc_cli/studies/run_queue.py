"""A study's queue: which runs are waiting, running, done or failed. Several processes write to it at once."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from acdc_cli import reading
from acdc_cli.errors import RunError
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.owner import Owner, is_gone

State = Literal["waiting", "running", "done", "failed"]

STALE_AFTER = 180.0
"""Seconds without a heartbeat after which a process on another machine counts as dead. Measured by this machine's
clock, because the clocks of two machines may differ."""
TRIES = 2
"""Number of failures after which a run stays failed."""
_PATIENCE = 120.0
"""Seconds to wait for other processes' transactions, which take milliseconds unless a network file system hangs."""
_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS runs (
    position INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    axes TEXT NOT NULL,
    overrides TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    host TEXT,
    pid INTEGER,
    owner TEXT,
    heartbeat REAL,
    job TEXT,
    error TEXT,
    CHECK ((state = 'running') = (owner IS NOT NULL))
)"""
_COLUMNS = ("state", "attempts", "failures", "host", "pid", "owner", "heartbeat", "job", "error")
# runs already begun come first, runs that have failed come last
_NEXT = "SELECT * FROM runs WHERE state IN ('running', 'waiting') ORDER BY failures, attempts = 0, position"


@dataclass(frozen=True)
class Row:
    cell: Cell
    state: State
    directory: Path
    """Directory of the run."""
    attempts: int
    """Number of times it was started, resumptions included."""
    failures: int
    """Number of attempts that ended in an error."""
    host: str | None
    """Host where it is running or last ran; None: it never has."""
    pid: int | None
    """Process on that host that supervises it."""
    owner: str | None
    """Owner id of that process while the run is running."""
    heartbeat: float | None
    """Time of the owner's last heartbeat, in Unix seconds of its own machine."""
    job: str | None
    """Its latest job in a scheduler's queue, if any, with that job's last state: `12_3 PENDING`."""
    error: str | None
    """Message of the last failure."""

    @property
    def key(self) -> str:
        return self.cell.key

    @property
    def queued(self) -> bool:
        """Whether it is waiting in a scheduler's queue."""
        return self.state == "running" and (self.job or "").endswith(" PENDING")


class _Stored(reading.Form):
    """A row as SQLite gives it, which stores any type in any column."""

    # a name in the study's folder
    key: Annotated[str, Field(pattern=r"^[^/\x00]*[^/\x00.][^/\x00]*$")]
    axes: str
    overrides: str
    state: State
    attempts: reading.Count
    failures: reading.Count
    host: str | None
    pid: int | None
    owner: str | None
    heartbeat: FiniteFloat | None
    job: str | None
    error: str | None


class RunQueue:
    """One SQLite file. Every change is one transaction, so that a process may be killed at any moment.

    Claims keep a run from being started twice. If two processes disagree about who is alive, the lock of the run
    directory still lets only one of them train.
    """

    def __init__(self, path: Path, stale_after: float = STALE_AFTER) -> None:
        self._path = path
        self._stale_after = stale_after
        self._heard: dict[str, tuple[str, float, float]] = {}
        """For runs on other machines, by key: the owner, its last heartbeat, and when this process first saw it."""
        with self._reading() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise RunError(
                f"{path} was written by another version of acdc ({version}, not {_VERSION}); use that version, or --out"
            )
        # a process that only reads may lack permission to write
        if version == 0:
            with self._writing() as db:
                db.execute(_TABLE)
                db.execute(f"PRAGMA user_version = {_VERSION}")

    def add(self, cells: Iterable[Cell]) -> None:
        """Adds new runs as waiting, and updates the axes and overrides of known ones.

        A run whose summary has appeared since becomes done; one whose summary is gone waits again.
        """
        with self._writing() as db:
            self._insert(db, cells)
            for row in self._select(db, "SELECT * FROM runs WHERE state != 'running'"):
                finished = RunDir(row.directory).finished
                if finished and row.state != "done":
                    self._reset(db, row.key, "done")
                elif row.state == "done" and not finished:
                    self._reset(db, row.key, "waiting")

    def grow(self, wanted: Callable[[Sequence[Row]], Iterable[Cell]]) -> list[str]:
        """Adds the cells that `wanted` computes from the rows, within one transaction; returns the keys of the new
        ones."""
        with self._writing() as db:
            rows = self._all(db)
            self._insert(db, wanted(rows))
            return [row.key for row in self._all(db)[len(rows) :]]

    def forget(self, kept: Callable[[Cell], bool]) -> list[str]:
        """Removes the runs not to be kept, unless they are running; returns their keys."""
        with self._writing() as db:
            rows = self._select(db, "SELECT * FROM runs WHERE state != 'running'")
            gone = [row.key for row in rows if not kept(row.cell)]
            db.executemany("DELETE FROM runs WHERE key = ?", [(key,) for key in gone])
            return gone

    def retry_failed(self) -> None:
        """Failed runs wait again, with all their tries."""
        with self._writing() as db:
            db.execute("UPDATE runs SET state = 'waiting', failures = 0 WHERE state = 'failed'")

    def claim(self, owner: Owner, under_way: Collection[str] = ()) -> Row | None:
        """The next run for `owner` to start: a waiting one, or one whose owner is gone. None if there is none now.

        under_way: keys of runs that `owner` should only supervise, because they are already being trained.
        """
        with self._writing() as db:
            for row in self._select(db, _NEXT):
                if row.state == "running" and not self._abandoned(row):
                    continue
                run = RunDir(row.directory)
                if run.finished:
                    self._reset(db, row.key, "done")
                elif self._lacks_its_source(db, row):
                    continue
                # the run of a killed sweep may not have ended yet
                elif row.key in under_way or not run.in_use:
                    db.execute(
                        "UPDATE runs SET state = 'running', attempts = attempts + 1, host = ?, pid = ?, owner = ?, "
                        "heartbeat = ? WHERE key = ?",
                        (owner.host, owner.pid, owner.id, time.time(), row.key),
                    )
                    return self._select(db, "SELECT * FROM runs WHERE key = ?", row.key)[0]
        return None

    def _lacks_its_source(self, db: sqlite3.Connection, row: Row) -> bool:
        """Whether it forks a run that has not kept the state yet; if that run never will, this one has failed, too."""
        if row.cell.source is None or RunDir(row.directory).resolved.exists():
            return False
        key, after = row.cell.source
        if after in RunDir(self._directory(key)).kept_states():
            return False
        error = None
        if RunDir(self._directory(key)).finished:
            error = f"{key}, which it forks, kept no state after {after} epochs; move its folder away to train it again"
        elif any(source.state == "failed" for source in self._select(db, "SELECT * FROM runs WHERE key = ?", key)):
            error = f"{key}, which it forks, has failed"
        if error:
            db.execute("UPDATE runs SET state = 'failed', owner = NULL, error = ? WHERE key = ?", (error, row.key))
        return True

    def beat(self, owner: Owner) -> set[str]:
        """Records that `owner` is alive. Returns the keys of its runs: another process may have taken some over."""
        with self._writing() as db:
            db.execute("UPDATE runs SET heartbeat = ? WHERE owner = ?", (time.time(), owner.id))
            return {row.key for row in self._select(db, "SELECT * FROM runs WHERE owner = ?", owner.id)}

    def finish(self, key: str, owner: Owner) -> bool:
        """Marks a run as done. Like the methods below, returns False without effect if the run is not the owner's."""
        assert RunDir(self._directory(key)).finished
        return self._update(key, owner, "state = 'done', owner = NULL, error = NULL")

    def fail(self, key: str, owner: Owner, error: str) -> bool:
        """Records a failure; the run waits for another try, if it has one."""
        state = "state = iif(failures + 1 < ?, 'waiting', 'failed')"
        return self._update(key, owner, f"{state}, failures = failures + 1, owner = NULL, error = ?", TRIES, error)

    def release(self, key: str, owner: Owner) -> bool:
        """The run ended early but without an error; it waits to be resumed."""
        return self._update(key, owner, "state = 'waiting', owner = NULL")

    def record_jobs(self, jobs: Mapping[str, str]) -> None:
        """Updates `Row.job`, by key."""
        with self._writing() as db:
            db.executemany("UPDATE runs SET job = ? WHERE key = ?", [(job, key) for key, job in jobs.items()])

    def rows(self) -> list[Row]:
        with self._reading() as db:
            return self._all(db)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block during which no other process changes the queue or is in such a block."""
        with self._writing():
            yield

    def _abandoned(self, row: Row) -> bool:
        assert row.owner is not None
        assert row.heartbeat is not None
        if is_gone(row.owner):
            return True
        now = time.monotonic()
        owner, heartbeat, since = self._heard.setdefault(row.key, (row.owner, row.heartbeat, now))
        if (owner, heartbeat) != (row.owner, row.heartbeat):
            self._heard[row.key] = (row.owner, row.heartbeat, now)
            return False
        return now - since > self._stale_after

    def _insert(self, db: sqlite3.Connection, cells: Iterable[Cell]) -> None:
        db.executemany(
            "INSERT INTO runs (key, axes, overrides) VALUES (?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET axes = excluded.axes, overrides = excluded.overrides",
            [(cell.key, json.dumps(dict(cell.axes)), json.dumps(cell.overrides)) for cell in cells],
        )

    def _reset(self, db: sqlite3.Connection, key: str, state: State) -> None:
        db.execute("UPDATE runs SET state = ?, failures = 0, owner = NULL, error = NULL WHERE key = ?", (state, key))

    def _update(self, key: str, owner: Owner, changes: str, *values: Any) -> bool:
        with self._writing() as db:
            changed = db.execute(f"UPDATE runs SET {changes} WHERE key = ? AND owner = ?", (*values, key, owner.id))
            return changed.rowcount == 1

    def _all(self, db: sqlite3.Connection) -> list[Row]:
        return self._select(db, "SELECT * FROM runs ORDER BY position")

    def _select(self, db: sqlite3.Connection, query: str, *values: Any) -> list[Row]:
        return [self._row(record) for record in db.execute(query, values).fetchall()]

    def _row(self, record: sqlite3.Row) -> Row:
        key = record["key"]
        try:
            reading.require(dict(record), _Stored)
        except ValueError as error:
            raise self._damaged(str(error)) from error
        axes = reading.parse_json(record["axes"], dict[str, str | int | FiniteFloat], self._damaged)
        overrides = reading.parse_json(record["overrides"], list[str], self._damaged)
        cell = Cell(key=key, axes=axes, overrides=tuple(overrides))
        return Row(cell=cell, directory=self._directory(key), **{column: record[column] for column in _COLUMNS})

    def _damaged(self, cause: str) -> RunError:
        return RunError(
            f"{self._path} cannot be used: {cause}. If it is damaged, move it away: finished runs are recognised by "
            "their directories"
        )

    def _directory(self, key: str) -> Path:
        return self._path.parent / "runs" / key

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        # locked for writing at once: a transaction that upgrades later may have read rows that have changed since
        with self._reading("BEGIN IMMEDIATE") as db:
            yield db

    @contextmanager
    def _reading(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                # not WAL, which needs memory shared between processes, impossible across machines
                db.execute("PRAGMA journal_mode = DELETE")
                # the journal's directory entry is on disk first, too: a power cut leaves the old or the new state
                db.execute("PRAGMA synchronous = EXTRA")
                db.execute(begin)
                with db:
                    yield db
        except sqlite3.Error as error:
            raise self._damaged(str(error)) from error
