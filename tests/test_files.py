from __future__ import annotations

import errno

import pytest

from imagelab.files import atomic_path


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
