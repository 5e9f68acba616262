"""Files inside a .zip archive, named as if it were a folder: images.zip/000001.jpg."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from zipfile import ZipFile

from acdc_cli import files


def read_bytes(path: Path) -> bytes:
    """The content of a file, or of a member of an archive. Raises OSError, KeyError and BadZipFile."""
    try:
        return files.read_bytes(path)
    except NotADirectoryError:
        archive = next((above for above in path.parents if above.suffix == ".zip" and above.is_file()), None)
        if archive is None:
            raise
        return _opened(archive).read(path.relative_to(archive).as_posix())


@lru_cache(maxsize=4)
def _opened(archive: Path) -> ZipFile:
    """Kept open, because reading the index of a large archive takes seconds. Threads may share it."""
    return ZipFile(archive)
