"""Files that are whole or not there, that say when they are damaged, and that one process at a time writes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from acdc_cli.errors import AcdcError, RunError

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space there",
    errno.EDQUOT: "your disk quota is used up; free some space there, or have it raised",
    errno.EROFS: "the file system is read-only; have it mounted for writing, or choose another place",
    errno.EACCES: "permission denied; make the folder writable, or choose another place",
    errno.EPERM: "permission denied; make the folder writable, or choose another place",
    errno.EFBIG: "the file gets larger than is allowed here; raise `ulimit -f`, or choose another place",
    errno.EIO: "the disk reports an input/output error; see the system's log, or choose another disk",
    errno.EMFILE: "too many files are open; raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine; stop other programs",
    errno.ENOLCK: "the file system gives no locks; have its lock service started, or choose another place",
}
_SEAL = re.compile(rb"\nacdc sha256 ([0-9a-f]{64})\n")
_SEAL_BYTES = 78
_READ_BYTES = 1 << 20


@contextmanager
def explained(path: Path, error: type[AcdcError] = RunError) -> Iterator[None]:
    """An OSError in the block becomes `error`, with its cause in words and the way out."""
    try:
        yield
    except OSError as cause:
        reason = _CAUSES.get(cause.errno or 0) or cause.strerror or str(cause)
        raise error(f"{path} cannot be written: {reason}. The previous file is kept.") from cause


@contextmanager
def replacing(path: Path, error: type[AcdcError] = RunError, keep: Path | None = None) -> Iterator[Path]:
    """A temporary sibling to write to; it takes the place of `path` when the block ends without an exception.

    The data reach the disk before the name does, so a power cut leaves the old file or the new one.
    keep: the name that the old file gets.
    Raises `error` where the system does not let it be written; the old file is then as it was.
    """
    partial = _beside(path, "partial")
    with explained(path, error):
        try:
            yield partial
            sync(partial)
            if keep is None or not path.exists():
                os.replace(partial, path)
            else:
                _replace_and_keep(partial, path, keep)
            sync(path.parent)
        finally:
            # what is left of it is overwritten by the next attempt
            with suppress(OSError):
                partial.unlink(missing_ok=True)


@contextmanager
def assembling(path: Path) -> Iterator[Path]:
    """A path of the same name in an empty folder beside it, for a file or a folder that others write.

    What lies there when the block ends without an exception takes the place of `path`; all else in the folder goes.
    Raises RunError where the system does not let it be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as workspace:
            new, old = Path(workspace, path.name), Path(workspace, "replaced")
            yield new
            for written in (new, *new.rglob("*")):
                sync(written)
            if path.is_dir():
                # a folder takes the place of an empty one only
                os.replace(path, old)
            os.replace(new, path)
            sync(path.parent)


def _replace_and_keep(partial: Path, path: Path, keep: Path) -> None:
    """`keep` is given up last: should `path` be damaged, then it is the only good one until `partial` has its name."""
    second_name = _beside(path, "older")
    second_name.unlink(missing_ok=True)
    try:
        os.link(path, second_name)
    except OSError:
        # a file system without hard links: there, `path` is missing for a moment
        os.replace(path, keep)
        os.replace(partial, path)
        return
    try:
        os.replace(partial, path)
        os.replace(second_name, keep)
    finally:
        with suppress(OSError):
            second_name.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def remove_leftovers(folder: Path) -> None:
    """What processes that died had not brought to an end; for the only one that writes below the folder now.

    Most is overwritten by the next attempt, but after the last there is none.
    """
    with explained(folder):
        for kind in ("partial", "older"):
            for leftover in folder.rglob(f".*.{kind}"):
                leftover.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, error: type[AcdcError] = RunError) -> None:
    with replacing(path, error) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str, error: type[AcdcError] = RunError) -> None:
    write_bytes(path, text.encode(), error)


def append_line(path: Path, line: str) -> None:
    """Adds a line that has reached the disk.

    Half a line at the end, of a process that died or a disk that was full, goes: whoever reads takes it for none.
    Raises RunError where the system does not let it be written; the lines before are then as they were.
    """
    with explained(path):
        lines = path.read_bytes() if path.exists() else b""
        whole = lines.rfind(b"\n") + 1
        with path.open("ab") as file:
            file.truncate(whole)
            file.write(f"{line}\n".encode())
        sync(path)
        if not whole:
            sync(path.parent)


class _Sealing:
    """Passes what is written on to a file, and digests it on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.failure: OSError | None = None
        """Of the first write that failed: torch.save may raise an error of its own instead."""

    def write(self, data: bytes | memoryview) -> int:
        if self.failure:
            raise self.failure
        try:
            written = self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self._digest.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        self.write(f"\nacdc sha256 {self._digest.hexdigest()}\n".encode())


@contextmanager
def sealed(path: Path) -> Iterator[BinaryIO]:
    """A new file, to write to and flush only, whose last line is the SHA-256 of all before it.

    `seal_holds` finds any change.
    """
    with path.open("wb") as file:
        sealing = _Sealing(file)
        try:
            yield cast(BinaryIO, sealing)
        except RuntimeError as error:
            if sealing.failure:
                raise sealing.failure from error
            raise
        sealing.seal()


def seal_holds(path: Path) -> bool | None:
    """Are the bytes those that were written? None: no seal is there."""
    with path.open("rb") as file:
        content = file.seek(0, os.SEEK_END) - _SEAL_BYTES
        file.seek(max(content, 0))
        found = _SEAL.fullmatch(file.read())
        if found is None:
            return None
        digest = hashlib.sha256()
        file.seek(0)
        while content > 0:
            part = file.read(min(content, _READ_BYTES))
            digest.update(part)
            content -= len(part)
        return digest.hexdigest().encode() == found[1]


@contextmanager
def locked(path: Path, busy: AcdcError) -> Iterator[None]:
    """Holds the lock file `path`, or raises `busy` while another process does; the system frees that of a dead one.

    Where there can be no lock, an error of the class of `busy` is raised.
    """
    with explained(path, type(busy)):
        lock = path.open("w")
    with lock:
        with explained(path, type(busy)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
        yield


def is_locked(path: Path) -> bool:
    """Does a process hold this lock file?"""
    with explained(path), path.open() as lock:
        try:
            # shared, so that two who ask at once do not take each other for the holder
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sync(path: Path) -> None:
    """Makes a file's bytes, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
