"""The Slurm launcher, with submitit's local executor in the cluster's place, and with programs in sbatch's."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import Acdc
from fake_runs import cells

from acdc_cli.errors import RunError
from acdc_cli.studies import scheduler as sweeps
from acdc_cli.studies.owner import Owner
from acdc_cli.studies.run_queue import Row, RunQueue
from acdc_cli.studies.scheduler import Sweep

submitit = pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
from acdc_cli.studies import slurm  # noqa: E402
from acdc_cli.studies.slurm import Slurm, SlurmJob, SlurmSilentError  # noqa: E402

SAVES_ONCE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
saved = pathlib.Path("saved")
print("again" if saved.exists() else "first", flush=True)
if not saved.exists():
    saved.touch()
    time.sleep(60)
"""
UNTIL_TOLD = """
import pathlib, time
pathlib.Path("begun").open("a").write("x")
while not pathlib.Path("end").exists():
    time.sleep(0.02)
"""


class Cluster:
    """submitit's local executor: its jobs are processes, and their ids those processes' numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.executor = submitit.LocalExecutor(folder)
        self.executor._throttling = 0
        self._submit = self.executor.submit_array
        self.executor.submit_array = self._keeping
        self.recorded: list[Mapping[str, str]] = []
        self.jobs: list[submitit.Job[int]] = []

    def _keeping(self, functions: Sequence[Callable[[], int]]) -> list[submitit.Job[int]]:
        self.jobs += self._submit(functions)
        return self.jobs[-len(functions) :]

    def states(self) -> dict[str, str]:
        ids = {path.name.partition("_")[0] for path in self.folder.glob("*_submitted.pkl")}
        return {job_id: "RUNNING" for job_id in ids if _is_alive(int(job_id))}

    def launcher(self, states: Callable[[], Mapping[str, str]] | None = None, patience: float = 0.3) -> Slurm:
        return Slurm(self.executor, states or self.states, self.recorded.append, refresh_every=0.02, patience=patience)

    def start(self, launcher: Slurm, program: str, number: int = 0) -> SlurmJob:
        """A Python program as the command of the study's cell of that number."""
        return launcher.start(cells(9)[number], [sys.executable, "-c", program], {"WORD": "hello"}, Path("log"))


def _is_alive(pid: int) -> bool:
    try:
        # of a child that has ended the number stays until it is asked for
        done, _ = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return False
    return done == 0


@pytest.fixture
def cluster(in_tmp: Path) -> Iterator[Cluster]:
    cluster = Cluster(in_tmp / "slurm")
    yield cluster
    # of a test that failed, too, no job is left behind
    for end in ("saved", "end"):
        Path(end).touch()
    for each in cluster.jobs:
        each._process.wait(timeout=30)


def outcome(job: SlurmJob) -> int:
    return until(job.poll)


def until(ask: Callable[[], int | None]) -> int:
    end = time.monotonic() + 60
    while (value := ask()) is None:
        assert time.monotonic() < end, "it took more than a minute"
        time.sleep(0.02)
    return value


def is_there(path: str, text: str = "") -> Callable[[], int | None]:
    return lambda: 1 if Path(path).exists() and text in Path(path).read_text() else None


def test_a_command_that_is_killed_has_its_signal_for_an_exit_code(cluster: Cluster) -> None:
    assert outcome(cluster.start(cluster.launcher(), "import os; os.kill(os.getpid(), 9)")) == -9


def test_a_command_has_the_environment_and_the_log_that_it_is_given(cluster: Cluster) -> None:
    Path("log").write_text("before\n")
    outcome(
        cluster.start(cluster.launcher(), "import os, sys; print(os.environ['WORD']); print('so', file=sys.stderr)")
    )
    assert sorted(Path("log").read_text().split()) == ["before", "hello", "so"]


@pytest.mark.slow
def test_a_command_that_cannot_be_started_is_a_failure_whose_cause_is_in_the_log(cluster: Cluster) -> None:
    launched = cluster.launcher().start(cells(1)[0], ["no-such-program"], {}, Path("log"))
    assert outcome(launched) == 1
    assert "no-such-program" in Path("log").read_text()


def test_a_run_that_has_saved_itself_goes_back_into_the_queue_and_on(cluster: Cluster) -> None:
    started = cluster.start(cluster.launcher(), SAVES_ONCE.replace("time.sleep(60)", "sys.exit(75)"))
    assert outcome(started) == 0
    assert Path("log").read_text().split() == ["first", "again"]
    assert len(cluster.jobs) == 1


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR2,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGUSR1, signal.SIGTERM)),
    ],
)
def test_a_job_that_is_told_to_end_has_its_run_save_and_goes_on_later(cluster: Cluster, number: int) -> None:
    program = "import os, pathlib; pathlib.Path('job').write_text(f'{os.getppid()} ')\n" + SAVES_ONCE
    started = cluster.start(cluster.launcher(), program)
    started.poll()
    until(is_there("log", "first"))
    os.kill(int(Path("job").read_text()), number)
    assert outcome(started) == 0
    assert Path("log").read_text().split() == ["first", "again"]


@pytest.mark.slow
def test_a_run_that_was_told_to_end_before_it_listened_goes_on_later(cluster: Cluster) -> None:
    deaf = SAVES_ONCE.replace("signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))", "")
    started = cluster.start(
        cluster.launcher(), "import os, pathlib; pathlib.Path('job').write_text(f'{os.getppid()} ')\n" + deaf
    )
    started.poll()
    until(is_there("log", "first"))
    os.kill(int(Path("job").read_text()), signal.SIGTERM)
    assert outcome(started) == 0


def test_a_cell_that_has_a_job_is_not_submitted_again(cluster: Cluster) -> None:
    first = cluster.start(cluster.launcher(), UNTIL_TOLD)
    first.poll()
    later = cluster.launcher()
    assert later.under_way() == {"seed=0"}
    again, other = cluster.start(later, UNTIL_TOLD), cluster.start(later, UNTIL_TOLD, number=1)
    assert again.poll() is None
    assert len(cluster.jobs) == 2
    assert again.submitted is not None
    assert first.submitted is not None
    assert again.submitted.job_id == first.submitted.job_id
    until(is_there("begun", "xx"))
    Path("end").touch()
    assert [outcome(each) for each in (first, again, other)] == [0, 0, 0]
    assert Path("begun").read_text() == "xx"


@pytest.mark.slow
def test_a_run_that_failed_gets_another_job_though_the_last_is_still_being_cleared_away(cluster: Cluster) -> None:
    launcher = cluster.launcher(lambda: {each.job_id: "COMPLETING" for each in cluster.jobs})
    assert outcome(cluster.start(launcher, "exit(2)")) == 2
    assert outcome(cluster.start(launcher, "exit(0)")) == 0


def test_to_stop_a_job_lets_it_go_on(cluster: Cluster) -> None:
    started = cluster.start(cluster.launcher(), UNTIL_TOLD)
    started.poll()
    until(is_there("begun"))
    started.stop(signal.SIGTERM)
    Path("end").touch()
    assert outcome(started) == 0


@pytest.mark.slow
def test_while_slurm_is_silent_nothing_is_submitted_and_no_job_is_given_up(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = True

    def states() -> dict[str, str]:
        if silent:
            raise SlurmSilentError("Unable to contact slurm controller")
        return cluster.states()

    launcher = cluster.launcher(states, patience=0)
    started = cluster.start(launcher, UNTIL_TOLD)
    for _ in range(5):
        assert started.poll() is None
        time.sleep(0.03)
    assert len(cluster.jobs) == 0
    silent = False
    until(lambda: started.poll() or len(cluster.jobs) or None)
    silent = True
    for _ in range(5):
        assert started.poll() is None
        time.sleep(0.03)
    silent = False
    Path("end").touch()
    assert outcome(started) == 0
    assert capsys.readouterr().err.count("Slurm does not answer (Unable to contact slurm controller)") == 2


def test_a_job_that_was_not_seen_for_a_moment_is_waited_for_again(cluster: Cluster) -> None:
    states: dict[str, str] = {}
    started = cluster.start(cluster.launcher(lambda: states), UNTIL_TOLD)
    started.poll()
    assert started.submitted is not None
    for seen in ({}, {started.submitted.job_id: "RUNNING"}, {}):
        time.sleep(0.4)
        states.clear()
        states.update(seen)
        assert started.poll() is None
    # seen, or a job that ends slowly on a busy machine would be given up
    states[started.submitted.job_id] = "RUNNING"
    Path("end").touch()
    assert outcome(started) == 0


@pytest.mark.parametrize(
    ("state", "code"),
    [
        pytest.param("PREEMPTED", 75, marks=pytest.mark.slow),
        pytest.param("NODE_FAIL", 75, marks=pytest.mark.slow),
        ("CANCELLED", -15),
        pytest.param("TIMEOUT", -9, marks=pytest.mark.slow),
        pytest.param("OUT_OF_MEMORY", -9, marks=pytest.mark.slow),
        pytest.param(None, -9, marks=pytest.mark.slow),
    ],
)
def test_a_job_that_has_ended_without_a_word_has_its_state_for_an_answer(
    cluster: Cluster, state: str | None, code: int
) -> None:
    states: dict[str, str] = {}
    launcher = cluster.launcher(lambda: states)
    started = cluster.start(launcher, UNTIL_TOLD)
    started.poll()
    assert started.submitted is not None
    states[started.submitted.job_id] = "RUNNING"
    time.sleep(0.4)
    assert started.poll() is None
    if state is None:
        states.clear()
    else:
        states[started.submitted.job_id] = state
    assert outcome(started) == code
    assert f"job {started.submitted.job_id} " + (f"has ended as {state}" if state else "is gone") in (
        Path("log").read_text()
    )
    Path("end").touch()


def test_the_ledger_hears_of_each_job_and_of_its_state(cluster: Cluster) -> None:
    started = cluster.start(cluster.launcher(), UNTIL_TOLD)
    started.poll()
    Path("end").touch()
    outcome(started)
    assert started.submitted is not None
    states = [text for each in cluster.recorded for text in each.values()]
    assert states == [f"{started.submitted.job_id} PENDING", f"{started.submitted.job_id} RUNNING"]


class Silence:
    def say(self, text: str) -> None:
        pass

    def draw(self, rows: object, own: set[str]) -> None:
        pass


@pytest.mark.slow
def test_a_sweep_that_ends_leaves_its_jobs_to_the_next(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_PAUSE", 0.02)
    queue = RunQueue(Path("ledger.sqlite"))
    queue.add(cells(2))
    Path("logs").mkdir()
    done = "\nimport sys; r = pathlib.Path(sys.argv[1]); r.mkdir(parents=True); (r / 'summary.json').write_text('{}')"

    def command(row: Row) -> list[str]:
        return [sys.executable, "-c", UNTIL_TOLD + done, str(row.directory)]

    def work(stop: Callable[[], bool]) -> None:
        launcher = Slurm(cluster.executor, cluster.states, queue.record_jobs, refresh_every=0.02)
        Sweep(queue, Owner.this_process(), launcher, command, Path("logs"), tuple, Silence()).work(stop)

    def both_run() -> bool:
        return is_there("begun", "xx")() is not None and all(str(row.job).endswith(" RUNNING") for row in queue.rows())

    work(both_run)
    assert [row.state for row in queue.rows()] == ["waiting", "waiting"]
    Path("end").touch()
    work(lambda: False)
    assert [row.state for row in queue.rows()] == ["done", "done"]
    assert Path("begun").read_text() == "xx"
    assert len(cluster.jobs) == 2


# --- What sbatch is told ------------------------------------------------------------------------


@pytest.fixture
def sbatch(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that stand for Slurm's: sbatch keeps what it is given in `script`, squeue knows no job."""
    folder = in_tmp / "bin"
    folder.mkdir()
    for name, program in {
        "sbatch": f"cp $1 {in_tmp}/script; echo x >>{in_tmp}/calls; echo Submitted batch job 7",
        "squeue": "true",
        "srun": "true",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{program}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def submitted(count: int, *options: str) -> str:
    """The script that sbatch got for so many cells."""
    launcher = slurm.slurm(Path("slurm"), "lengths", options, lambda states: None)
    jobs = [launcher.start(cell, ["true"], {}, Path("log")) for cell in cells(count)]
    for each in jobs:
        assert each.poll() is None
    return Path("script").read_text()


def test_cells_that_are_started_together_are_one_array(sbatch: Path) -> None:
    assert "#SBATCH --array=0-2%3" in submitted(3).splitlines()
    assert Path("calls").read_text().split() == ["x"]


def test_every_option_goes_to_sbatch(sbatch: Path) -> None:
    script = submitted(2, "partition=gpu", "time=1-12:00:00", "gres=gpu:a100:1", "exclusive=", "mail_type=END")
    wanted = {"partition=gpu", "time=1-12:00:00", "gres=gpu:a100:1", "exclusive", "mail-type=END", "job-name=lengths"}
    assert {f"#SBATCH --{option}" for option in wanted} <= set(script.splitlines())


def test_a_run_is_signalled_in_time_to_save_and_may_be_put_back(sbatch: Path) -> None:
    assert {"#SBATCH --signal=USR1@120", "#SBATCH --requeue"} <= set(submitted(2).splitlines())
    assert "#SBATCH --signal=USR1@30" in submitted(2, "signal-delay-s=30").splitlines()


def test_what_nobody_asked_for_is_left_to_the_cluster(sbatch: Path) -> None:
    assert "--time" not in submitted(2)
    assert "--wckey" not in submitted(2)


def test_the_cores_that_a_run_is_given_reach_it(sbatch: Path) -> None:
    script = submitted(2, "cpus-per-task=8").splitlines()
    assert "#SBATCH --cpus-per-task=8" in script
    assert script[-1].startswith("srun ")
    assert " --cpus-per-task=8 " in script[-1]


@pytest.mark.parametrize(
    "option", ["array=0-3", "signal=USR2@9", "output=x", "open_mode=truncate", "arr=0-3", "o=x", "err=x", "no-req="]
)
def test_options_that_the_launcher_sets_are_refused(sbatch: Path, option: str) -> None:
    with pytest.raises(RunError, match="is set by the launcher"):
        submitted(2, option)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("comment=x\ntouch pwned\n", "has a line break"),
        ("comment=x\rtouch pwned", "has a line break"),
        ("comment=\x1b[2J", "another control character"),
        ("comment\ntouch pwned #=x", "names no option of sbatch"),
        ("=x", "names no option of sbatch"),
        ("array-parallelism=1\n2", "whole numbers"),
    ],
)
def test_an_option_stays_on_its_line_of_the_script(sbatch: Path, option: str, why: str) -> None:
    with pytest.raises(RunError, match=why):
        submitted(2, option)
    assert not Path("calls").exists()


def test_a_folder_stays_on_its_line_of_the_script(sbatch: Path) -> None:
    with pytest.raises(RunError, match="no line breaks in paths"):
        slurm.slurm(Path("a\nb"), "lengths", (), lambda states: None)


def test_an_sbatch_that_names_no_job_is_told(sbatch: Path) -> None:
    (sbatch / "sbatch").write_text("#!/bin/sh\necho Welcome\n")
    with pytest.raises(RunError, match=r"Slurm takes no jobs.*Welcome"):
        submitted(2)


def test_the_lines_of_setup_are_lines_of_the_script(sbatch: Path) -> None:
    assert {"module load cuda", "ulimit -n 4096"} <= set(
        submitted(2, "setup=module load cuda\nulimit -n 4096").splitlines()
    )


def test_what_sbatch_says_against_a_job_is_said(sbatch: Path) -> None:
    (sbatch / "sbatch").write_text("#!/bin/sh\necho sbatch: error: invalid partition specified: gpuu >&2; exit 1\n")
    with pytest.raises(RunError, match=r"Slurm takes no jobs.*invalid partition specified: gpuu"):
        submitted(2, "partition=gpuu")


def test_squeue_that_fails_is_silence_and_no_empty_queue(sbatch: Path) -> None:
    (sbatch / "squeue").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n")
    with pytest.raises(SlurmSilentError, match="Unable to contact"):
        slurm.queue()
    (sbatch / "squeue").write_text("#!/bin/sh\necho 7_0 RUNNING; echo 7_1 PENDING\n")
    assert slurm.queue() == {"7_0": "RUNNING", "7_1": "PENDING"}


def test_squeue_that_hangs_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(SlurmSilentError, match="no answer within a minute"):
        slurm.queue()


BANNERS = r"""#!/bin/sh
printf 'Welcome to the cluster: 3 nodes DOWN\n\n  \n'
printf 'Wartung am M\374rz 7_9\n'
printf '7_0 RUNNING\n\n 7_1 PENDING \n8 COMPLETED\nslurm_load_jobs: retrying\n'
"""


def test_banners_empty_lines_and_other_encodings_of_squeue_are_not_jobs(sbatch: Path) -> None:
    (sbatch / "squeue").write_text(BANNERS)
    assert slurm.queue() == {"7_0": "RUNNING", "7_1": "PENDING", "8": "COMPLETED"}
    assert slurm._state("7_1") == "PENDING"
    assert slurm._state("9") is None
    (sbatch / "squeue").write_text("#!/bin/sh\nprintf 'Fehler \\374ber Fehler' >&2; exit 1\n")
    with pytest.raises(SlurmSilentError, match="ber Fehler"):
        slurm.queue()


def test_without_slurm_its_launcher_says_so(in_tmp: Path, acdc: Acdc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(in_tmp))
    Path("s.yaml").write_text("name: s\nbase: demo\naxes: {seed: [0]}\n")
    result = acdc("sweep", "--launcher", "slurm", "s.yaml")
    assert result.exit_code == 2
    assert "Slurm is not available here" in result.stderr


def test_without_submitit_the_launcher_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, slurm.__name__)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match=r"pip install 'acdc-cli\[slurm\]'"):
        importlib.import_module(slurm.__name__)


# --- What a job does, without its process -------------------------------------------------------


@dataclass
class Environment:
    """submitit's, of the first of four tasks on two nodes."""

    cluster: str = "slurm"
    job_id: str = "7_0"
    global_rank: int = 0
    num_nodes: int = 2
    num_tasks: int = 4
    requeued: int = 0

    def _requeue(self, countdown: int) -> None:
        self.requeued += 1


@pytest.mark.parametrize(("state", "times"), [("RUNNING", 1), ("COMPLETING", 0)])
def test_a_signal_while_its_run_starts_ends_the_run_and_slurm_decides_on_a_job_that_it_takes_away(
    sbatch: Path, monkeypatch: pytest.MonkeyPatch, state: str, times: int
) -> None:
    (sbatch / "squeue").write_text(f"#!/bin/sh\necho 7_0 {state}\n")
    job, start = Environment(), subprocess.Popen

    def signalled(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        if arguments[0] == ("sleep", "60"):
            signal.raise_signal(signal.SIGUSR1)
        return start(*arguments, **options)

    monkeypatch.setattr(submitit, "JobEnvironment", lambda: job)
    monkeypatch.setattr(subprocess, "Popen", signalled)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with pytest.raises(SystemExit) as ended:
            slurm.Element("seed=0", ("sleep", "60"), {}, Path("log"))()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert (ended.value.code, job.requeued) == (75, times)


def test_a_job_that_cannot_be_requeued_says_so_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(countdown: int) -> None:
        raise subprocess.CalledProcessError(1, "scontrol")

    job: Any = Environment(cluster="local")
    monkeypatch.setattr(job, "_requeue", refused)
    assert slurm._again(job) == 75


@pytest.mark.parametrize(
    ("given", "threads"),
    [({}, None), ({"ON_NODE": "16"}, "8"), ({"ON_NODE": "1"}, "1"), ({"ON_NODE": "16", "PER_TASK": "3"}, "3")],
)
def test_a_run_has_as_many_threads_as_its_task_has_cores(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], threads: str | None
) -> None:
    for name in ("ON_NODE", "PER_TASK"):
        monkeypatch.delenv(f"SLURM_CPUS_{name}", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_CPUS_{name}", value)
    job: Any = Environment()
    assert slurm._threads(job).get("OMP_NUM_THREADS") == threads


def test_the_command_line_passes_options_on(acdc: Acdc, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr("acdc_cli.studies.run_study.sweep", lambda *arguments: given.extend(arguments))
    options = ("--slurm-partition", "gpu", "--slurm-exclusive", "--slurm-time=60", "--slurm-comment=a=b")
    result = acdc("sweep", "--launcher", "slurm", *options, "--workers", "3", "study.yaml")
    assert result.exit_code == 0, result.output
    assert given == ["study.yaml", None, "slurm", 3, ["partition=gpu", "exclusive=", "time=60", "comment=a=b"], False]


def test_options_of_slurm_without_its_launcher_are_an_error(acdc: Acdc) -> None:
    result = acdc("sweep", "study.yaml", "--slurm-partition=gpu")
    assert result.exit_code == 2
    assert "--slurm-partition" in result.output
