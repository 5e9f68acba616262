"""A study's queue: which of its runs wait, run, are done or have failed. Several processes write it at once."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from acdc_cli.errors import RunError
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.owner import Owner, is_gone

State = Literal["waiting", "running", "done", "failed"]

STALE_AFTER = 180.0
"""Seconds without a heartbeat after which a process on another machine counts as dead. They are counted here: clocks
of two machines may differ."""
TRIES = 2
"""Times that a run may fail before it stays failed."""
_PATIENCE = 120.0
"""Seconds to wait for the others' transactions, which take milliseconds; a network file system may hang for a while."""
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
# what was begun before what was not, and what has failed last
_NEXT = "SELECT * FROM runs WHERE state IN ('running', 'waiting') ORDER BY failures, attempts = 0, position"


@dataclass(frozen=True)
class Row:
    cell: Cell
    state: State
    directory: Path
    """Of the run."""
    attempts: int
    """Times that it was started, resumptions included."""
    failures: int
    """Of those, how many ended in an error."""
    host: str | None
    """Where it runs, or ran last; None: it never has."""
    pid: int | None
    """Of the process there that looks after it."""
    owner: str | None
    """Its Owner's id, while it runs."""
    heartbeat: float | None
    """When that was last heard of, in seconds of its machine's Unix time."""
    job: str | None
    """Its job in a scheduler's queue, if it was ever there, and what that last said of it: `12_3 PENDING`."""
    error: str | None
    """Of the last failure."""

    @property
    def key(self) -> str:
        return self.cell.key

    @property
    def queued(self) -> bool:
        """Does it wait in a scheduler's queue?"""
        return self.state == "running" and (self.job or "").endswith(" PENDING")


class RunQueue:
    """One SQLite file. Every change is one transaction, so that a process may be killed at any moment.

    It is the claims that keep a run from being started twice. Should two processes be of different minds about who is
    alive, the lock of the run directory still lets only one of them train.
    """

    def __init__(self, path: Path, stale_after: float = STALE_AFTER) -> None:
        self._path = path
        self._stale_after = stale_after
        self._heard: dict[str, tuple[str, float, float]] = {}
        """Of runs of other machines, by key: the owner, its last heartbeat, and when that was first seen from here."""
        with self._reading() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise RunError(
                f"{path} was written by another version of acdc ({version}, not {_VERSION}); use that, or --out"
            )
        # who only reads may not be allowed to write
        if version == 0:
            with self._writing() as db:
                db.execute(_TABLE)
                db.execute(f"PRAGMA user_version = {_VERSION}")

    def add(self, cells: Iterable[Cell]) -> None:
        """Those that are new wait, and those that are known are from now on as they are given here.

        Where a summary has come or gone since, its run is done, or waits again.
        """
        with self._writing() as db:
            self._insert(db, cells)
            for row in self._select(db, "SELECT * FROM runs WHERE state != 'running'"):
                finished = RunDir(row.directory).finished
                if finished and row.state != "done":
                    self._put(db, row.key, "done")
                elif row.state == "done" and not finished:
                    self._put(db, row.key, "waiting")

    def grow(self, wanted: Callable[[Sequence[Row]], Iterable[Cell]]) -> list[str]:
        """Add what `wanted` makes of the rows, which stay as they are meanwhile; returns the keys of the new ones."""
        with self._writing() as db:
            rows = self._all(db)
            self._insert(db, wanted(rows))
            return [row.key for row in self._all(db)[len(rows) :]]

    def forget(self, kept: Callable[[Cell], bool]) -> list[str]:
        """Take out the runs that are not to be kept, unless they run now; returns their keys."""
        with self._writing() as db:
            rows = self._select(db, "SELECT * FROM runs WHERE state != 'running'")
            gone = [row.key for row in rows if not kept(row.cell)]
            db.executemany("DELETE FROM runs WHERE key = ?", [(key,) for key in gone])
            return gone

    def retry_failed(self) -> None:
        """They wait again, with all their tries."""
        with self._writing() as db:
            db.execute("UPDATE runs SET state = 'waiting', failures = 0 WHERE state = 'failed'")

    def claim(self, owner: Owner, under_way: Collection[str] = ()) -> Row | None:
        """The next run for `owner` to start: one whose owner is gone, or one that waits. None: there is none now.

        under_way: keys of runs that `owner` need not start, only look after; they are trained by whom they should be.
        """
        with self._writing() as db:
            for row in self._select(db, _NEXT):
                if row.state == "running" and not self._abandoned(row):
                    continue
                run = RunDir(row.directory)
                if run.finished:
                    self._put(db, row.key, "done")
                # one whose sweep was killed may not have come to its end yet
                elif row.key in under_way or not run.in_use:
                    db.execute(
                        "UPDATE runs SET state = 'running', attempts = attempts + 1, host = ?, pid = ?, owner = ?, "
                        "heartbeat = ? WHERE key = ?",
                        (owner.host, owner.pid, owner.id, time.time(), row.key),
                    )
                    return self._select(db, "SELECT * FROM runs WHERE key = ?", row.key)[0]
        return None

    def beat(self, owner: Owner) -> set[str]:
        """Say that `owner` is alive. Returns the keys of the runs it has: others may have taken it for dead."""
        with self._writing() as db:
            db.execute("UPDATE runs SET heartbeat = ? WHERE owner = ?", (time.time(), owner.id))
            return {row.key for row in self._select(db, "SELECT * FROM runs WHERE owner = ?", owner.id)}

    def finish(self, key: str, owner: Owner) -> bool:
        """The run has left its summary. As all that follow: False, and nothing happens, where it is not the owner's."""
        assert RunDir(self._directory(key)).finished
        return self._update(key, owner, "state = 'done', owner = NULL, error = NULL")

    def fail(self, key: str, owner: Owner, error: str) -> bool:
        """The run waits for another try, if it has one."""
        state = "state = iif(failures + 1 < ?, 'waiting', 'failed')"
        return self._update(key, owner, f"{state}, failures = failures + 1, owner = NULL, error = ?", TRIES, error)

    def release(self, key: str, owner: Owner) -> bool:
        """The run has ended before its time, and not by an error; it waits to go on."""
        return self._update(key, owner, "state = 'waiting', owner = NULL")

    def record_jobs(self, jobs: Mapping[str, str]) -> None:
        """What Row.job is, by key."""
        with self._writing() as db:
            db.executemany("UPDATE runs SET job = ? WHERE key = ?", [(job, key) for key, job in jobs.items()])

    def rows(self) -> list[Row]:
        with self._reading() as db:
            return self._all(db)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process changes the queue meanwhile, or is in such a block."""
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

    def _put(self, db: sqlite3.Connection, key: str, state: State) -> None:
        db.execute("UPDATE runs SET state = ?, failures = 0, owner = NULL, error = NULL WHERE key = ?", (state, key))

    def _update(self, key: str, owner: Owner, changes: str, *values: Any) -> bool:
        with self._writing() as db:
            changed = db.execute(f"UPDATE runs SET {changes} WHERE key = ? AND owner = ?", (*values, key, owner.id))
            return changed.rowcount == 1

    def _all(self, db: sqlite3.Connection) -> list[Row]:
        return self._select(db, "SELECT * FROM runs ORDER BY position")

    def _select(self, db: sqlite3.Connection, query: str, *values: Any) -> list[Row]:
        return [self._row(found) for found in db.execute(query, values).fetchall()]

    def _row(self, found: sqlite3.Row) -> Row:
        key = found["key"]
        cell = Cell(key=key, axes=json.loads(found["axes"]), overrides=tuple(json.loads(found["overrides"])))
        columns = ("state", "attempts", "failures", "host", "pid", "owner", "heartbeat", "job", "error")
        return Row(cell=cell, directory=self._directory(key), **{column: found[column] for column in columns})

    def _directory(self, key: str) -> Path:
        return self._path.parent / "runs" / key

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        # at once for writing: a transaction that only becomes one may find that it read what is no longer so
        with self._reading("BEGIN IMMEDIATE") as db:
            yield db

    @contextmanager
    def _reading(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                # not WAL, whose readers and writers share memory, which those on several machines cannot
                db.execute("PRAGMA journal_mode = DELETE")
                # the journal's name, too, is on the disk before the change is: a power cut leaves the old or the new
                db.execute("PRAGMA synchronous = EXTRA")
                db.execute(begin)
                with db:
                    yield db
        except sqlite3.Error as error:
            raise RunError(
                f"{self._path} cannot be used: {error}. It is put right by whoever opens it next; where it is damaged, "
                "move it away: the runs that are done are found again by their directories"
            ) from error
