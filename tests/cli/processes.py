"""Two processes on the CPU that train runs together, one after another, without a launcher."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import multiprocessing
from torch.distributed import TCPStore

RANKS = 2
VIT = (
    "model={name: timm:vit_tiny_patch16_224, options: {img_size: 5, patch_size: 5, embed_dim: 32, num_heads: 2, "
    "depth: 1}}"
)
"""A network without batch norm, whose outputs do not depend on how a batch is cut."""

Work = Callable[[int, Path], None]


@dataclass(frozen=True)
class End:
    """How a work ended in a process."""

    raised: str
    """Kind and message of the exception, then its traceback; empty where there was none."""
    speaks: bool
    """Would what is written to the terminal be seen?"""


def together(works: Sequence[Work], folder: Path) -> list[list[End]]:
    """Do each of the works in two processes that find each other; how they ended, by work and rank."""
    stores = [TCPStore("localhost", 0, is_master=True, wait_for_workers=False) for _ in works]
    # forked from a process that has imported torch and has no threads: a pair starts at once
    multiprocessing.set_forkserver_preload(["acdc_cli.jobs.training_run", "timm"])
    arguments = (works, folder, [store.port for store in stores])
    multiprocessing.start_processes(_do, arguments, nprocs=RANKS, start_method="forkserver")
    return [
        [End(**json.loads((folder / f"{number}-{rank}.json").read_text())) for rank in range(RANKS)]
        for number in range(len(works))
    ]


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells a process whose agent keeps the store."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return ranks | meeting


def _do(rank: int, works: Sequence[Work], folder: Path, ports: Sequence[int]) -> None:
    import torch

    from acdc_cli import console

    torch.set_num_threads(1)
    os.chdir(folder)
    for number, (work, port) in enumerate(zip(works, ports, strict=True)):
        os.environ.update(environment(rank, port))
        raised = ""
        console.mute(False)
        try:
            work(rank, folder)
        except (Exception, SystemExit) as error:
            raised = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        end = End(raised, speaks=not console._err.quiet)
        (folder / f"{number}-{rank}.json").write_text(json.dumps(asdict(end)))


def untimed(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: record[key] for key in record if key not in ("seconds", "images_per_second")} for record in records]
