"""The tests that need a GPU, several at a time, while the CPUs make the photographs for later parts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu import processes
from benchmarks.gpu.trial import Trial

_TESTS = Path(__file__).parents[2] / "tests" / "gpu"
_SMOKE = "every_method_but_acdc or frees_every_weight"
_WORKERS = 6
"""Each holds a CUDA context and a small network: 80 GB take many more, 16 cores do not."""
_TEST_SECONDS = 120
_ENDING = 8.0
"""Seconds that pytest needs to write its results when it is interrupted."""


def run(trial: Trial) -> None:
    report = trial.folder / "tests.xml"
    report.unlink(missing_ok=True)
    words = ["-m", "pytest", "-m", "gpu", str(_TESTS), "-v", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if trial.smoke:
        words += ["-k", _SMOKE]
    if importlib.util.find_spec("pytest_timeout"):
        words.append(f"--timeout={_TEST_SECONDS}")
    else:
        # pyproject.toml sets a timeout, which is an unknown and so a forbidden key without the plugin
        words += ["-o", "addopts=", "-W", "ignore::pytest.PytestConfigWarning"]
    parallel = importlib.util.find_spec("xdist") is not None and not trial.smoke
    words += ["-n", str(_WORKERS)] if parallel else []
    environment = os.environ if trial.cuda else {**os.environ, "ACDC_GPU_TESTS_ON": "cpu"}
    trial.record(workers=_WORKERS if parallel else 1, finished=False)
    with _photos_beside(trial):
        log = trial.folder / "tests-pytest.log"
        code = processes.python(words, trial.left() - _ENDING, log, environment)
    trial.record(finished=code is not None, exit_code=code)
    if not report.exists():
        raise RuntimeError(f"pytest left no report: {processes.last_line(log)}")
    counts, failing = read(report.read_text())
    trial.record(counts=counts, failing=failing)
    for outcome, count in counts.items():
        trial.line(f"gpu tests {outcome}", count, "")
    if code is None:
        raise RuntimeError(f"interrupted after {sum(counts.values())} tests: no time left for the others")
    # 1: tests failed, which is a result
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {code}: {processes.last_line(log)}")


def read(junit: str) -> tuple[dict[str, int], dict[str, str]]:
    """How many tests passed, failed, were skipped; and the first line of each failure by the test's name."""
    counts: Counter[str] = Counter(passed=0, failed=0, skipped=0)
    failing: dict[str, str] = {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        problems = [*case.iter("failure"), *case.iter("error")]
        outcome = "failed" if problems else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        if problems:
            said = (problems[0].get("message") or problems[0].text or "").strip().splitlines()
            failing[f"{case.get('classname')}::{case.get('name')}"] = said[0][:400] if said else ""
    return dict(counts), failing


@contextmanager
def _photos_beside(trial: Trial) -> Iterator[None]:
    """Made here, because half a minute of CPU work disturbs no timing. Part `fed` makes them if this fails."""
    if trial.smoke:
        yield
        return
    with (trial.folder / "photos.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu.fed"], stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        try:
            process.wait(max(0.0, trial.left()))
        except subprocess.TimeoutExpired:
            process.terminate()
