"""Atomic writes, checksums that reveal damage, and locks that allow one writer at a time."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, StringIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from acdc_cli.errors import AcdcError, NotAFileError, RunError

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space there",
    errno.EDQUOT: "your disk quota is used up; free some space there, or have it raised",
    errno.EROFS: "the file system is read-only; have it mounted for writing, or choose another place",
    errno.EACCES: "permission denied; make the folder writable, or choose another place",
    errno.EPERM: "permission denied; make the folder writable, or choose another place",
    errno.EFBIG: "the file exceeds the size limit; raise `ulimit -f`, or choose another place",
    errno.EIO: "the disk reports an input/output error; see the system's log, or choose another disk",
    errno.EMFILE: "too many files are open; raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine; stop other programs",
    errno.ELOOP: "a symbolic link stands in its place, or links lead in a circle; remove the link",
    errno.ENOLCK: "the file system has no locks; have its lock service started, or choose another place",
}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_staying: dict[Path, tuple[int, int] | None] = {}
"""Device and inode of the folders that `staying` watches."""
_SEAL = re.compile(rb"\nacdc sha256 ([0-9a-f]{64})\n")
_SEAL_BYTES = 78
_READ_BYTES = 1 << 20


def open_regular(path: str | Path) -> BufferedReader:
    """A file to read. Raises NotAFileError at once for what might never open or never end, such as a pipe."""
    return open(path, "rb", opener=_regular)


def read_bytes(path: Path) -> bytes:
    """The content of a file that `open_regular` opens."""
    with open_regular(path) as file:
        return file.read()


def sha256(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal. Raises NotAFileError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _regular(path: str, flags: int) -> int:
    """An `opener`: a descriptor of a regular file, or NotAFileError."""
    try:
        # without O_NONBLOCK, opening a pipe waits for its other end
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise NotAFileError(path, "a socket, pipe or device") from error
    if (kind := stat.S_IFMT(os.fstat(descriptor).st_mode)) != stat.S_IFREG:
        os.close(descriptor)
        raise NotAFileError(path, _KINDS.get(kind, "something else"))
    return descriptor


@contextmanager
def explained(path: Path, error: type[AcdcError] = RunError) -> Iterator[None]:
    """An OSError in the block becomes `error`, with its cause and its fix in words.

    Raises RunError if a folder that `staying` watches is gone.
    """
    try:
        for folder, identity in list(_staying.items()):
            if path.is_relative_to(folder) and _identity(folder) != identity:
                raise RunError(
                    f"{folder} was moved away or replaced while it is in use, so nothing more is written there. Move "
                    "it back, or resume where it is now."
                )
        yield
    except OSError as cause:
        reason = _CAUSES.get(cause.errno or 0) or cause.strerror or str(cause)
        if cause.errno == errno.ENOSPC and _is_out_of_inodes(path):
            reason = "the file system is out of inodes, though not of space; remove files there, large or small"
        raise error(f"{path} cannot be written: {reason}. The previous file is kept.") from cause


def _is_out_of_inodes(path: Path) -> bool:
    try:
        state = os.statvfs(path.parent)
    except OSError:
        return False
    # file systems that make inodes as they need them have 0 of 0
    return state.f_files > 0 and state.f_favail == 0


@contextmanager
def staying(folder: Path) -> Iterator[None]:
    """In the block, nothing is written below this path once it leads to another folder, or to none."""
    _staying[folder] = _identity(folder)
    try:
        yield
    finally:
        del _staying[folder]


def _identity(folder: Path) -> tuple[int, int] | None:
    """None if there is no such folder."""
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


@contextmanager
def replacing(path: Path, error: type[AcdcError] = RunError, keep: Path | None = None) -> Iterator[Path]:
    """A temporary sibling to write to; it replaces `path` when the block ends without an exception.

    The data reach the disk before the name does, so a power cut leaves the old file or the new one.
    keep: the new name of the old file.
    Raises `error` if the file cannot be written; the old file is then unchanged.
    """
    partial = _beside(path, "partial")
    with explained(path, error):
        try:
            # a link of this name would lead the write to another file
            partial.unlink(missing_ok=True)
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
    """A path of the same name in a temporary folder beside it, for a file or a folder that other code writes.

    When the block ends without an exception, it replaces `path`; all else in the temporary folder is removed.
    Raises RunError if it cannot be written.
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
    """Replaces `keep` last: if `path` is damaged, `keep` is the only good file until `partial` is renamed."""
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
    """Removes unfinished files of processes that died. Only the sole writer below the folder may call it.

    The next write overwrites most of them, but there is none after the last.
    """
    with explained(folder):
        for kind in ("partial", "older"):
            for leftover in folder.rglob(f".*.{kind}"):
                leftover.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, error: type[AcdcError] = RunError) -> None:
    with replacing(path, error) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str, error: type[AcdcError] = RunError) -> None:
    write_bytes(path, as_bytes(text), error)


def as_bytes(text: str) -> bytes:
    """UTF-8; the bytes of file names that are none are those of the file system."""
    return text.encode(errors="surrogateescape")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """CSV. Text that a spreadsheet would take for a formula begins with an apostrophe."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_inert(cell) for cell in row] for row in rows])
    return text.getvalue()


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    # the writer quotes no carriage return
    cell = cell.replace("\r", " ")
    if len(cell) < 2 or cell.lstrip()[:1] not in ("=", "+", "-", "@"):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def copy(source: Path, path: Path) -> None:
    with replacing(path) as partial:
        shutil.copyfile(source, partial)


def append_line(path: Path, line: str) -> None:
    """Appends a line, and returns when it has reached the disk.

    Half a line at the end, left by a process that died or a full disk, is removed; readers treat it as missing.
    Raises RunError if the line cannot be written; the lines before it are then unchanged.
    """
    with explained(path):
        lines = read_bytes(path) if path.exists() else b""
        whole = lines.rfind(b"\n") + 1
        with path.open("ab") as file:
            file.truncate(whole)
            file.write(f"{line}\n".encode())
        sync(path)
        if not whole:
            sync(path.parent)


class _Sealing:
    """Writes to a file and computes the digest of what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.failure: OSError | None = None
        """The error of the first failed write; torch.save may raise its own instead."""

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
    """A new file, for writing and flushing only, whose last line is the SHA-256 of the bytes before it.

    `seal_holds` detects any change.
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
    """Whether the file is as `sealed` wrote it; None if it has no seal."""
    with open_regular(path) as file:
        content = file.seek(0, os.SEEK_END) - _SEAL_BYTES
        file.seek(max(content, 0))
        seal = _SEAL.fullmatch(file.read())
        if seal is None:
            return None
        digest = hashlib.sha256()
        file.seek(0)
        while content > 0:
            part = file.read(min(content, _READ_BYTES))
            digest.update(part)
            content -= len(part)
        return digest.hexdigest().encode() == seal[1]


@contextmanager
def locked(path: Path, busy: AcdcError) -> Iterator[None]:
    """Holds the lock file `path`, or raises `busy` while another process does; the system frees a dead one's lock.

    What the file holds stays. Raises an error of the class of `busy` if it is a link or not a file, or if the file
    system has no locks.
    """
    with explained(path, type(busy)):
        lock = open(path, "ab", opener=_not_through_a_link)  # noqa: SIM115 — closed below
    with lock:
        with explained(path, type(busy)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
        yield


def _not_through_a_link(path: str, flags: int) -> int:
    return _regular(path, flags | os.O_NOFOLLOW)


def is_locked(path: Path) -> bool:
    """Whether a process holds this lock file."""
    with explained(path), open(path, "rb", opener=_not_through_a_link) as lock:
        try:
            # shared, so that two simultaneous checks do not take each other for the holder
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
