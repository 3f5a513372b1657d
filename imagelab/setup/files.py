"""Writing files so that a reader never meets half of one, and two runs not each other's."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import readable

_claimed: dict[Path, FileLock] = {}


def claim(folder: Path) -> None:
    """Keep other processes from claiming `folder` until this one ends or calls `give_back`.

    Raises UserError where another has it. A process that is killed loses its claims; the hidden file
    that stays means nothing. Where the file system knows no locks, nothing is kept from anybody.
    """
    folder = Path(folder).resolve()
    if folder in _claimed:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"Another run is writing into {folder}: wait until it ends, or choose another --output-dir."
        ) from error
    except NotImplementedError:
        return
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            return
        error.filename = str(folder)  # the folder that the user knows of
        raise
    _claimed[folder] = lock


def give_back(folder: Path | None = None) -> None:
    """End this process's claim on `folder`, if it has one; without a folder, all of its claims."""
    for claimed in list(_claimed) if folder is None else [Path(folder).resolve()]:
        if lock := _claimed.pop(claimed, None):
            lock.release()


def keep_apart(output: Path, *sources: Path | str) -> None:
    """Raises UserError where `output` is one of `sources`, or a link to what is not there."""
    if output.is_symlink() and not output.exists():
        raise UserError(
            f"{readable(output)} is a link to {readable(os.readlink(output))}, which does not exist."
        )
    for source in map(Path, sources):
        if output.exists() and source.exists() and output.samefile(source):
            raise UserError(f"{readable(output)} is also the input: choose another --output.")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends without an error.

    The folder is made if need be. Whatever happens inside the block, `path` holds either what it
    held before or all that was written; two runs that write one file do not mix. Raises UserError
    where `path` is a link to what is not there, perhaps on a disk that is not mounted.
    """
    path = Path(path)
    keep_apart(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the file that the user knows of
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
