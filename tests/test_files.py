from __future__ import annotations

import errno

import pytest
from filelock import FileLock

from imagelab.setup.files import atomic_path, claim, give_back
from imagelab.setup.runtime import UserError


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_permissions_are_ordinary(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("x")
    reference = tmp_path / "b.txt"
    reference.write_text("x")
    assert path.stat().st_mode == reference.stat().st_mode


def test_an_error_of_the_system_names_the_file_that_was_meant(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match="No space left") as error, atomic_path(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_claimed_by_one_run_at_a_time(tmp_path):
    folder = tmp_path / "pictures"
    claim(folder)
    claim(folder)  # the same run may ask twice
    other = FileLock(folder / ".lock", timeout=0)
    with pytest.raises(TimeoutError):
        other.acquire()
    give_back()
    with other, pytest.raises(UserError, match="Another run is writing into"):
        claim(folder)
    claim(folder)
    give_back()
