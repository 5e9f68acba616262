"""The launcher for a Slurm cluster, through submitit: every cell is an element of a job array that runs its command.

The jobs are Slurm's and go on without the sweep that submitted them, which only watches. It may end at any time; the
next one finds them in the queue and watches on, so that no cell is submitted twice.
"""

from __future__ import annotations

import os
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
    from submitit.core.utils import UncompletedJobError
except ModuleNotFoundError as error:
    raise RunError(
        "Slurm is reached through submitit, which is not installed: pip install 'acdc-cli[slurm]'"
    ) from error

SLOTS = 1000
"""Jobs in the queue at once: Slurm's own largest array, where the cluster has not set another (MaxArraySize)."""
LOOK_EVERY = 10.0
"""Seconds between two questions to Slurm."""
SAVE_SECONDS = 120
"""How long before its time is up a run is told so; `--slurm-signal-delay-s` is another."""
_PATIENCE = 30.0
"""Seconds that a shared file system may take to show what a job has left."""
_ENDED_EARLY = (RESUME_ME, 130, -signal.SIGTERM, -signal.SIGUSR1)
"""How a run ends that was asked to: saved, or before there was anything to save."""
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
"""Slurm's states of a job that does not come back, and the exit code of a run that could not tell its own."""
_OURS = ("array", "error", "input", "open-mode", "output", "requeue", "no-requeue", "signal", "wait", "wrap")
_SUBMITITS: dict[str, Callable[[str], Any]] = {
    "array-parallelism": int,
    "signal-delay-s": int,
    "setup": lambda line: [line],
}
"""Options that sbatch does not have, and submitit does."""

States = Callable[[], Mapping[str, str]]
"""Slurm's states of this user's jobs by their ids (`12_3`). Raises SlurmSilentError where it does not answer."""


class SlurmSilentError(Exception):
    """Slurm does not answer, which says nothing about the jobs."""


@dataclass(frozen=True)
class Element:
    """What a job does. It is pickled, and called in the job's own process."""

    key: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path

    def __call__(self) -> int:
        """The exit code of the command; of one that is saved only where the job cannot be put back into the queue."""
        job = submitit.JobEnvironment()
        asked: list[int] = []
        process: subprocess.Popen[bytes] | None = None

        def ask(number: int, _: object) -> None:
            # Slurm sends its signals to all processes of a job; others may send them to this one alone
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
    """torch would start as many as the machine has cores."""
    per_task = os.environ.get("SLURM_CPUS_PER_TASK")
    on_node = os.environ.get("SLURM_CPUS_ON_NODE")
    if per_task is None and on_node is not None:
        per_task = str(max(1, int(on_node) * job.num_nodes // job.num_tasks))
    return {} if per_task is None else {"OMP_NUM_THREADS": per_task}


def _again(job: submitit.JobEnvironment) -> int:
    """Ends this process, and the job goes back into the queue; returns where that is not allowed."""
    try:
        # of a job that is being preempted or cancelled Slurm has decided already what becomes of it
        if job.global_rank == 0 and (job.cluster != "slurm" or _state(job.job_id) == "RUNNING"):
            job._requeue(0)
    except subprocess.SubprocessError:
        return RESUME_ME
    # no Exception, so that submitit writes no result: this was not the job's end
    raise SystemExit(RESUME_ME)


def _state(job_id: str) -> str:
    command = ["squeue", "--noheader", "--jobs", job_id, "--format", "%T"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def queue() -> Mapping[str, str]:
    """As `States`, by squeue: sacct, which submitit asks, needs a cluster that keeps accounts."""
    command = ["squeue", "--me", "--array", "--noheader", "--states", "all", "--format", "%i %T"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise SlurmSilentError(error.stderr.strip()) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmSilentError("no answer within a minute") from error
    return dict(line.split() for line in said.splitlines())


class SlurmJob:
    """As launch.Job: a cell's job, from its submission to its end, with all the times that it was put back between."""

    def __init__(self, launcher: Slurm, element: Element) -> None:
        self._launcher = launcher
        self.element = element
        self.submitted: submitit.Job[int] | None = None
        self.code: int | None = None
        self.gone_since: float | None = None
        """When Slurm did not have it any more, though it had left no result."""

    def poll(self) -> int | None:
        if self.code is None:
            self._launcher.look()
        return self.code

    def stop(self, signal: signal.Signals) -> None:
        """Nothing: the job goes on, and is watched by whoever asks for its cell next. scancel ends it."""


class Slurm:
    """As launch.Launcher."""

    outlives = True

    def __init__(
        self,
        executor: submitit.Executor,
        states: States,
        record: Callable[[Mapping[str, str]], None],
        slots: int = SLOTS,
        look_every: float = LOOK_EVERY,
        patience: float = _PATIENCE,
    ) -> None:
        """record: is told which job each cell has and what its state is, whenever that changes: `12_3 PENDING`."""
        self.slots = slots
        self._executor, self._states, self._record = executor, states, record
        self._look_every, self._patience = look_every, patience
        self._new: list[SlurmJob] = []
        self._watched: list[SlurmJob] = []
        self._recorded: dict[str, str] = {}
        self._keys: dict[str, str | None] = {}
        self._under_way: dict[str, str] = {}
        self._due = 0.0
        self._silent = False

    def under_way(self) -> frozenset[str]:
        """Keys of the cells that have a job in the queue."""
        self.look()
        return frozenset(self._under_way)

    def start(self, cell: Cell, command: Sequence[str], environment: Mapping[str, str], log: Path) -> SlurmJob:
        """It is submitted with all others that are started before the first of them is polled, as one array."""
        job = SlurmJob(self, Element(cell.key, tuple(command), dict(environment), log.absolute()))
        # whatever has become of it since it was last asked for: its end has not been heard of yet
        job.submitted = self._known(cell.key)
        self._new.append(job)
        return job

    def look(self) -> None:
        """Submit what is new, and hear from Slurm how the jobs are; by itself this asks only now and then."""
        if time.monotonic() < self._due and (self._silent or not self._new):
            return
        try:
            states = self._states()
        except SlurmSilentError as error:
            if not self._silent:
                console.warn(f"Slurm does not answer ({error}); asking again every {self._look_every:.0f} s")
            self._silent = True
            return
        finally:
            self._due = time.monotonic() + self._look_every
        self._silent = False
        for job in self._watched:
            self._hear(job, states)
        self._watched = [job for job in self._watched if job.code is None]
        # after they were heard: what is over by now is not under way
        self._under_way = self._cells(states)
        self._note({**dict.fromkeys(self._submit(), "PENDING"), **states})

    def _cells(self, states: Mapping[str, str]) -> dict[str, str]:
        """Those that have a job in the queue, and its id."""
        found = {}
        for job_id in states:
            job = self._executor.job_class(self._executor.folder, job_id)
            if job_id not in self._keys:
                # a job of something else has nothing in this study's folder
                element = job.submission().function if job.paths.submitted_pickle.exists() else None
                self._keys[job_id] = element.key if isinstance(element, Element) else None
            key = self._keys[job_id]
            # one that has left its result may still be in the queue for a while
            if key is not None and states[job_id] not in _OVER and not job.task(0).paths.result_pickle.exists():
                found[key] = job_id
        return found

    def _known(self, key: str) -> submitit.Job[int] | None:
        job_id = self._under_way.get(key)
        return None if job_id is None else self._executor.job_class(self._executor.folder, job_id)

    def _submit(self) -> list[str]:
        """Those cells that have no job yet; returns their jobs' ids."""
        for job in self._new:
            job.submitted = job.submitted or self._known(job.element.key)
        if missing := [job for job in self._new if job.submitted is None]:
            try:
                submitted = self._executor.submit_array([job.element for job in missing])
            except UncompletedJobError as error:
                raise RunError(f"Slurm takes no jobs: {str(error).strip()}") from error
            for job, each in zip(missing, submitted, strict=True):
                job.submitted = each
                self._keys[each.job_id] = job.element.key
                self._under_way[job.element.key] = each.job_id
        self._watched += self._new
        self._new = []
        return [job.submitted.job_id for job in missing if job.submitted]

    def _hear(self, job: SlurmJob, states: Mapping[str, str]) -> None:
        submitted = job.submitted
        assert submitted is not None
        # of several processes the first tells
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
            _tell(
                job.element.log, f"error: Slurm's job {submitted.job_id} {how}; its output is in {first.paths.stderr}"
            )
            job.code = -signal.SIGKILL if state is None else _OVER[state]

    def _note(self, states: Mapping[str, str]) -> None:
        ids = {job.element.key: job.submitted.job_id for job in self._watched if job.submitted}
        said = {key: f"{job_id} {states[job_id]}" for key, job_id in ids.items() if job_id in states}
        if changed := {key: text for key, text in said.items() if self._recorded.get(key) != text}:
            self._recorded |= changed
            self._record(changed)


def _tell(log: Path, text: str) -> None:
    """Where the run's own last words would be looked for."""
    with log.open("a") as file:
        file.write(f"{text}\n")


def slurm(
    folder: Path,
    name: str,
    options: Sequence[str],
    record: Callable[[Mapping[str, str]], None],
    slots: int | None = None,
) -> Slurm:
    """options: sbatch's, as `partition=gpu` or `exclusive`; folder: where submitit keeps what the jobs share with it.

    Raises RunError where there is no Slurm, or an option is one that the launcher sets itself.
    """
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise RunError("there is no Slurm here (no srun): start the sweep on a machine of the cluster") from error
    executor.update_parameters(**_parameters(name, options))
    return Slurm(executor, queue, record, slots or SLOTS)


def _parameters(name: str, options: Sequence[str]) -> dict[str, Any]:
    """As submitit takes them. What it would set unasked, the time among it, is left to the cluster."""
    given = {}
    for key, _, value in (option.partition("=") for option in options):
        given[key.replace("_", "-")] = value
    if taken := [key for key in given if key in _OURS]:
        raise RunError(
            f"--slurm-{taken[0]} is set by the launcher, which uses it to find its jobs and their output; leave it out"
        )
    try:
        submitits = {key: read(given.pop(key)) for key, read in _SUBMITITS.items() if key in given}
    except ValueError as error:
        raise RunError(f"--slurm-array-parallelism and --slurm-signal-delay-s are whole numbers: {error}") from error
    delay = submitits.pop("signal-delay-s", SAVE_SECONDS)
    # sbatch's own are not passed on by srun: without it a run would have one core
    cores = [f"--cpus-per-task={given['cpus-per-task']}"] if "cpus-per-task" in given else []
    # USR1 is what a run saves at; submitit's own signal, USR2, would end it
    set_here: dict[str, str | bool] = {"signal": f"USR1@{delay}", "requeue": True}
    return {
        "time": None,
        "wckey": None,
        "job_name": name,
        "srun_args": cores,
        **{key.replace("-", "_"): value for key, value in submitits.items()},
        # one without a value, as --exclusive, submitit knows by True
        "additional_parameters": {key: value or True for key, value in given.items()} | set_here,
    }
