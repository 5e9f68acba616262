"""Where the numbers go: metrics.jsonl is authoritative; W&B mirrors it and can never stop a run."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlparse

from acdc_cli import console, files
from acdc_cli.errors import AcdcError
from acdc_cli.reading import plain
from acdc_cli.recipe.blocks.run import TrackBlock
from acdc_cli.runs.run_dir import RunDir

WandbMode = Literal["online", "offline", "disabled"]
COMPLETE = "the run continues, and metrics.jsonl has every number"
"""What a mirror that fails does not change."""


class Tracker:
    """Receives each epoch's numbers; this base class discards them."""

    def log(self, record: dict[str, Any]) -> None:
        """Logs one epoch's record: plain numbers and strings, and `layers` with the sparsity of each layer."""

    def alert(self, text: str) -> None:
        """Reports something the user should see during the run."""

    def finish(self, summary: dict[str, Any]) -> None:
        """The run has finished."""

    def close(self, failed: bool = False) -> None:
        """The process ends; `failed` if the run is unfinished."""


class JsonLines(Tracker):
    """Appends each record to metrics.jsonl as one line, which is on disk when `log` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, record: dict[str, Any]) -> None:
        files.append_line(self._path, json.dumps(plain(record)))


class Wandb(Tracker):
    """Mirrors the records into one W&B run, under the same names; `layers` becomes a table.

    No step is logged twice, whatever the process: `wandb-step` holds the last one.
    The first failure is reported once and ends the mirroring; the run continues, and metrics.jsonl is complete.
    """

    _COMPLETE = COMPLETE

    def __init__(self, block: TrackBlock, run: RunDir, name: str, config: dict[str, Any], mode: WandbMode) -> None:
        self._run: Any = None
        self._step_file = run.wandb_step
        try:
            self._last_step = int(files.read_bytes(self._step_file)) if self._step_file.exists() else -1
            identity = _identity(run.wandb_id)
        except (AcdcError, OSError, ValueError) as error:
            self._lost(error)
            return
        self._settings: dict[str, Any] = {
            "project": block.project,
            "entity": block.entity,
            "group": block.group,
            "tags": block.tags,
            "dir": str(run.path),
            "name": name,
            "id": identity,
            "config": config,
        }
        self._run = self._start(mode)

    def _start(self, mode: WandbMode) -> Any:
        import wandb

        quiet = wandb.Settings(silent=True, console="off")
        resume: Literal["allow"] | None = "allow" if mode == "online" else None
        try:
            return wandb.init(**self._settings, mode=mode, resume=resume, settings=quiet)
        except Exception as error:  # W&B raises many kinds, its server's included, and none may stop a run
            if mode == "online":
                console.warn(f"W&B cannot be reached ({error}); it runs offline: upload later with `wandb sync`")
                return self._start("offline")
            self._lost(error)
            return None

    def log(self, record: dict[str, Any]) -> None:
        if self._run is not None and record["step"] > self._last_step:
            self._attempt(lambda: self._mirror(record))

    def _mirror(self, record: dict[str, Any]) -> None:
        import wandb

        # recorded before the row is sent: a lost row is still in metrics.jsonl, but a duplicate cannot be removed
        files.write_text(self._step_file, f"{record['step']}\n")
        self._last_step = record["step"]
        table = wandb.Table(columns=["layer", "sparsity"], data=[list(item) for item in record["layers"].items()])
        self._run.log(record | {"layers": table}, step=record["step"])

    def alert(self, text: str) -> None:
        self._attempt(lambda: self._run.alert(title="collapse", text=text, level="WARN"))

    def finish(self, summary: dict[str, Any]) -> None:
        self._attempt(lambda: self._run.summary.update(summary))

    def publish(self, report: Report) -> None:
        """The report's files as an artifact, its tables and figures as media of the run."""
        self._attempt(lambda: self._publish(report))

    def _publish(self, report: Report) -> None:
        import wandb

        media: dict[str, Any] = {file.stem: wandb.Image(str(file)) for file in sorted(report.folder.glob("*.png"))}
        for name, (columns, rows) in report.tables.items():
            media[name] = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log(media)
        # W&B allows fewer characters than file names do
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", report.name), type="report")
        artifact.add_dir(str(report.folder))
        self._run.log_artifact(artifact)

    def close(self, failed: bool = False) -> None:
        self._attempt(lambda: self._run.finish(exit_code=int(failed)))

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # as above
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._run = None
        console.warn(f"W&B is not available ({error}); {self._COMPLETE}")


def _identity(path: Path) -> str:
    """The W&B run's id, the same after every resumption."""
    if not path.exists():
        files.write_text(path, secrets.token_hex(4))
    return files.read_bytes(path).decode()


def trackers(block: TrackBlock, run: RunDir, name: str, config: dict[str, Any]) -> list[Tracker]:
    """metrics.jsonl first, then the mirrors that the recipe asks for and that can be imported."""
    tracking: list[Tracker] = [JsonLines(run.metrics)]
    try:
        if (mode := wandb_mode(block.wandb)) != "disabled":
            tracking.append(Wandb(block, run, name, config, mode))
    except ImportError as error:
        console.warn(f"W&B is not available ({error}); {COMPLETE}")
    try:
        if block.tensorboard:
            from acdc_cli.runs.tensorboard import TensorBoard

            tracking.append(TensorBoard(run))
    except ImportError as error:
        console.warn(f"TensorBoard is not available ({error}): pip install 'acdc-cli[tensorboard]'; {COMPLETE}")
    return tracking


@dataclass(frozen=True)
class Report:
    """A study's report, as W&B gets it."""

    name: str
    folder: Path
    """Its files; the figures are PNG files there."""
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]]
    """Columns and rows by name."""


class _ReportRun(Wandb):
    """The W&B run of a study's reports: the same for each, so that the artifact gets versions."""

    _COMPLETE = "the report is complete"


def publish_report(block: TrackBlock, study: Path, report: Report) -> None:
    """Gives W&B a study's report, in the study's group, unless `block` disables it. Never fails."""
    try:
        if (mode := wandb_mode(block.wandb)) == "disabled":
            return
        mirror = _ReportRun(block.model_copy(update={"group": study.name}), RunDir(study), report.name, {}, mode)
        mirror.publish(report)
        mirror.close()
    except ImportError as error:
        console.warn(f"W&B is not available ({error}); {_ReportRun._COMPLETE}")


def wandb_mode(asked: Literal["auto", "online", "offline", "disabled"]) -> WandbMode:
    """`auto` is online if W&B has credentials (its own WANDB_MODE, WANDB_API_KEY, netrc), otherwise offline."""
    if asked != "auto":
        return asked
    given = os.environ.get("WANDB_MODE")
    if given is not None and given in get_args(WandbMode):
        return cast(WandbMode, given)
    return "online" if _has_credentials() else "offline"


def _has_credentials() -> bool:
    """Checks where W&B stores them without asking its server: `wandb.login` would wait half a minute."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)).hostname
    try:
        return netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host or "") is not None
    except FileNotFoundError:
        return False
    except (NetrcParseError, OSError) as error:
        console.warn(f"W&B's login cannot be read ({error}); it runs offline")
        return False
