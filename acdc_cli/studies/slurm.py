"""The launcher for a Slurm cluster, through submitit: every cell is an element of a job array that runs its command.

The jobs belong to Slurm and continue without the sweep that submitted them, which only watches them. It may end at any
time; the next sweep finds the jobs in the queue and watches them, so that no cell is submitted twice.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc_cli import console
from acdc_cli.errors import RESUME_ME, RunError
from acdc_cli.studies.grid import Cell

try:
    import submitit
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError
except ModuleNotFoundError as error:
    raise RunError(
        "the Slurm launcher needs submitit, which is not installed: pip install 'acdc-cli[slurm]'"
    ) from error

SLOTS = 1000
"""Jobs in the queue at once: Slurm's default maximum array size (MaxArraySize)."""
REFRESH_EVERY = 10.0
"""Seconds between two queries to Slurm."""
SAVE_SECONDS = 120
"""Seconds before its time limit at which a run is signalled; `--slurm-signal-delay-s` overrides it."""
_PATIENCE = 30.0
"""Seconds that a shared file system may take to show a job's files."""
_ENDED_EARLY = (RESUME_ME, 130, -signal.SIGTERM, -signal.SIGUSR1)
"""Exit codes of a run that was asked to end, after saving or before there was anything to save."""
_OVER = {
    "BOOT_FAIL": RESUME_ME,
    "CANCELLED": -signal.SIGTERM,
    "COMPLETED": -signal.SIGKILL,
    "DEADLINE": -signal.SIGTERM,
    "FAILED": -signal.SIGKILL,
    "NODE_FAIL": RESUME_ME,
    "OUT_OF_MEMORY": -signal.SIGKILL,
    "PREEMPTED": RESUME_ME,
    "TIMEOUT": -signal.SIGKILL,
}
"""Slurm's states of a job that will not return, and the exit code to assume for a run that left none."""
_OURS = ("array", "error", "input", "open-mode", "output", "requeue", "no-requeue", "signal", "wait", "wrap")
_LISTED = re.compile(r"([0-9]+(?:_[0-9]+)?) ([A-Z_]+)")
"""A job's line of squeue: its id and its state."""
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_SUBMITITS: dict[str, Callable[[str], Any]] = {
    "array-parallelism": int,
    "signal-delay-s": int,
    "setup": lambda line: [line],
}
"""Options of submitit that sbatch does not have."""

States = Callable[[], Mapping[str, str]]
"""Slurm's states of this user's jobs by job id (`12_3`). Raises SlurmSilentError if Slurm does not answer."""


class SlurmSilentError(Exception):
    """Slurm does not answer, which implies nothing about the jobs."""


@dataclass(frozen=True)
class Element:
    """The callable of a job. It is pickled and called in the job's own process."""

    key: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path

    def __call__(self) -> int:
        """The exit code of the command; RESUME_ME only if the job could not be requeued."""
        job = submitit.JobEnvironment()
        asked: list[int] = []
        process: subprocess.Popen[bytes] | None = None

        def ask(number: int, _: object) -> None:
            # Slurm signals all processes of a job; other senders may signal only this one
            asked.append(number)
            if process is not None:
                process.terminate()

        for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(each, ask)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment | _threads(job),
            )
        if asked:
            process.terminate()
        code = process.wait()
        if code == RESUME_ME or (asked and code in _ENDED_EARLY):
            return _again(job)
        return code


def _threads(job: submitit.JobEnvironment) -> dict[str, str]:
    """Without this, torch would start one thread per core of the machine."""
    per_task = os.environ.get("SLURM_CPUS_PER_TASK")
    on_node = os.environ.get("SLURM_CPUS_ON_NODE")
    if per_task is None and on_node is not None:
        per_task = str(max(1, int(on_node) * job.num_nodes // job.num_tasks))
    return {} if per_task is None else {"OMP_NUM_THREADS": per_task}


def _again(job: submitit.JobEnvironment) -> int:
    """Ends this process and requeues the job; returns if requeueing is not allowed."""
    try:
        # Slurm itself decides what becomes of a job that is being preempted or cancelled
        if job.global_rank == 0 and (job.cluster != "slurm" or _state(job.job_id) == "RUNNING"):
            job._requeue(0)
    except subprocess.SubprocessError:
        return RESUME_ME
    # not an Exception, so that submitit writes no result: the job has not ended
    raise SystemExit(RESUME_ME)


def _state(job_id: str) -> str | None:
    return _listed("--jobs", job_id).get(job_id)


def _listed(*which: str) -> dict[str, str]:
    """Slurm's states of jobs by job id."""
    command = ["squeue", "--array", "--noheader", *which, "--format", "%i %T"]
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}
    said = subprocess.run(command, capture_output=True, timeout=60, check=True, **how).stdout
    # clusters print banners of their own among the lines
    matches = (_LISTED.fullmatch(line.strip()) for line in said.splitlines())
    return {match[1]: match[2] for match in matches if match}


def queue() -> Mapping[str, str]:
    """`States` from squeue: sacct, which submitit uses, needs a cluster with accounting."""
    try:
        return _listed("--me", "--states", "all")
    except subprocess.CalledProcessError as error:
        raise SlurmSilentError(error.stderr.strip()) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmSilentError("no answer within a minute") from error


class SlurmJob:
    """A `launcher.Job`: a cell's Slurm job from submission to its end, requeues included."""

    def __init__(self, launcher: Slurm, element: Element) -> None:
        self._launcher = launcher
        self.element = element
        self.submitted: submitit.Job[int] | None = None
        self.code: int | None = None
        self.gone_since: float | None = None
        """Time since which Slurm no longer lists it although it left no result."""

    def poll(self) -> int | None:
        if self.code is None:
            self._launcher.refresh()
        return self.code

    def stop(self, signal: signal.Signals) -> None:
        """Does nothing: the job continues, and the next sweep of its cell watches it. scancel ends it."""


class Slurm:
    """A `launcher.Launcher`."""

    outlives = True

    def __init__(
        self,
        executor: submitit.Executor,
        states: States,
        record: Callable[[Mapping[str, str]], None],
        slots: int = SLOTS,
        refresh_every: float = REFRESH_EVERY,
        patience: float = _PATIENCE,
    ) -> None:
        """record: called with each cell's job and state whenever they change: `12_3 PENDING`."""
        self.slots = slots
        self._executor, self._states, self._record = executor, states, record
        self._refresh_every, self._patience = refresh_every, patience
        self._new: list[SlurmJob] = []
        self._watched: list[SlurmJob] = []
        self._recorded: dict[str, str] = {}
        self._keys: dict[str, str | None] = {}
        self._under_way: dict[str, str] = {}
        self._due = 0.0
        self._silent = False

    def under_way(self) -> frozenset[str]:
        """Keys of the cells that have a job in the queue."""
        self.refresh()
        return frozenset(self._under_way)

    def start(self, cell: Cell, command: Sequence[str], environment: Mapping[str, str], log: Path) -> SlurmJob:
        """All jobs started before the first of them is polled are submitted as one array."""
        job = SlurmJob(self, Element(cell.key, tuple(command), dict(environment), log.absolute()))
        # a job already in the queue: its end has not been reported yet
        job.submitted = self._known(cell.key)
        self._new.append(job)
        return job

    def refresh(self) -> None:
        """Submits new jobs and asks Slurm for all states; without new jobs, only every `refresh_every` seconds."""
        if time.monotonic() < self._due and (self._silent or not self._new):
            return
        try:
            states = self._states()
        except SlurmSilentError as error:
            if not self._silent:
                console.warn(f"Slurm does not answer ({error}); asking again every {self._refresh_every:.0f} s")
            self._silent = True
            return
        finally:
            self._due = time.monotonic() + self._refresh_every
        self._silent = False
        for job in self._watched:
            self._update(job, states)
        self._watched = [job for job in self._watched if job.code is None]
        # after hearing them: a job that has just ended is no longer under way
        self._under_way = self._cells(states)
        self._note({**dict.fromkeys(self._submit(), "PENDING"), **states})

    def _cells(self, states: Mapping[str, str]) -> dict[str, str]:
        """The cells that have a job in the queue, with its id."""
        job_ids = {}
        for job_id in states:
            job = self._executor.job_class(self._executor.folder, job_id)
            if job_id not in self._keys:
                # unrelated jobs have no files in this study's folder
                element = job.submission().function if job.paths.submitted_pickle.exists() else None
                self._keys[job_id] = element.key if isinstance(element, Element) else None
            key = self._keys[job_id]
            # a finished job may stay in the queue for a while
            if key is not None and states[job_id] not in _OVER and not job.task(0).paths.result_pickle.exists():
                job_ids[key] = job_id
        return job_ids

    def _known(self, key: str) -> submitit.Job[int] | None:
        job_id = self._under_way.get(key)
        return None if job_id is None else self._executor.job_class(self._executor.folder, job_id)

    def _submit(self) -> list[str]:
        """Submits the cells that have no job yet; returns their job ids."""
        for job in self._new:
            job.submitted = job.submitted or self._known(job.element.key)
        if missing := [job for job in self._new if job.submitted is None]:
            try:
                submitted = self._executor.submit_array([job.element for job in missing])
            except (UncompletedJobError, FailedSubmissionError) as error:
                raise RunError(f"Slurm takes no jobs: {str(error).strip()}") from error
            for job, each in zip(missing, submitted, strict=True):
                job.submitted = each
                self._keys[each.job_id] = job.element.key
                self._under_way[job.element.key] = each.job_id
        self._watched += self._new
        self._new = []
        return [job.submitted.job_id for job in missing if job.submitted]

    def _update(self, job: SlurmJob, states: Mapping[str, str]) -> None:
        submitted = job.submitted
        assert submitted is not None
        # the first of several tasks reports for all
        first = submitted.task(0)
        state = states.get(submitted.job_id)
        if first.paths.result_pickle.exists():
            failure = first.exception()
            if failure is not None:
                _tell(job.element.log, str(failure))
            job.code = first.result() if failure is None else 1
        elif state is not None and state not in _OVER:
            job.gone_since = None
        elif job.gone_since is None:
            job.gone_since = time.monotonic()
        elif time.monotonic() - job.gone_since > self._patience:
            how = "is gone from the queue" if state is None else f"has ended as {state}"
            _tell(job.element.log, f"error: Slurm job {submitted.job_id} {how}; its output is in {first.paths.stderr}")
            job.code = -signal.SIGKILL if state is None else _OVER[state]

    def _note(self, states: Mapping[str, str]) -> None:
        ids = {job.element.key: job.submitted.job_id for job in self._watched if job.submitted}
        said = {key: f"{job_id} {states[job_id]}" for key, job_id in ids.items() if job_id in states}
        if changed := {key: text for key, text in said.items() if self._recorded.get(key) != text}:
            self._recorded |= changed
            self._record(changed)


def _tell(log: Path, text: str) -> None:
    """Appends a message to the log, where the run's own last lines would be."""
    with log.open("a") as file:
        file.write(f"{text}\n")


def slurm(
    folder: Path,
    name: str,
    options: Sequence[str],
    record: Callable[[Mapping[str, str]], None],
    slots: int | None = None,
) -> Slurm:
    """options: sbatch's, such as `partition=gpu` or `exclusive`; folder: for the files that submitit shares with jobs.

    Raises RunError if there is no Slurm, or for an option that the launcher sets itself.
    """
    if not str(folder.absolute()).isprintable():
        raise RunError(f"{str(folder.absolute())!r}: sbatch takes no line breaks in paths; choose another with --out")
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise RunError("Slurm is not available here (no srun): start the sweep on a machine of the cluster") from error
    executor.update_parameters(**_parameters(name, options))
    return Slurm(executor, queue, record, slots or SLOTS)


def _parameters(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Options as submitit takes them. Its own defaults, such as the time limit, are replaced by the cluster's."""
    given = {}
    for key, _, value in (option.partition("=") for option in options):
        key = key.replace("_", "-")
        if not _OPTION.fullmatch(key):
            raise RunError(f"--slurm-{key!r} names no option of sbatch: letters, digits and dashes, a letter first")
        # sbatch takes any beginning of an option's name for the option
        if any(ours.startswith(key) for ours in _OURS):
            raise RunError(f"--slurm-{key} is set by the launcher to find its jobs and their output; leave it out")
        if key not in _SUBMITITS and not value.isprintable():
            # sbatch reads one option a line, and the shell would run the rest
            raise RunError(f"--slurm-{key}: {value!r} has a line break or another control character; leave it out")
        given[key] = value
    try:
        submitits = {key: read(given.pop(key)) for key, read in _SUBMITITS.items() if key in given}
    except ValueError as error:
        raise RunError(f"--slurm-array-parallelism and --slurm-signal-delay-s take whole numbers: {error}") from error
    delay = submitits.pop("signal-delay-s", SAVE_SECONDS)
    # srun does not inherit sbatch's --cpus-per-task: without this a run would have one core
    cores = [f"--cpus-per-task={given['cpus-per-task']}"] if "cpus-per-task" in given else []
    # runs save on USR1; submitit's own signal, USR2, would end them
    set_here: dict[str, str | bool] = {"signal": f"USR1@{delay}", "requeue": True}
    return {
        "time": None,
        "wckey": None,
        "job_name": name,
        "srun_args": cores,
        **{key.replace("-", "_"): value for key, value in submitits.items()},
        # submitit expresses an option without a value, such as --exclusive, as True
        "additional_parameters": {key: value or True for key, value in given.items()} | set_here,
    }
