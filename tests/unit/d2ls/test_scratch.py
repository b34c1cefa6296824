import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext

import pytest

from d2ls.scratch import PREFIX, atomic_write, only_process, remove_abandoned, scratch_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from d2ls.scratch import scratch_folder
with scratch_folder("model", root=Path(sys.argv[1])) as folder:
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_is_there_and_then_gone(tmp_path):
    with scratch_folder("model", root=tmp_path) as folder:
        (folder / "a").write_text("a")
        assert folder.name.startswith(f"{PREFIX}model-")
        assert folder.stat().st_mode & 0o077 == 0
    assert not any(tmp_path.iterdir())


def test_a_folder_goes_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_folder("model", root=tmp_path):
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    own, link = tmp_path / "d2ls-shards", tmp_path / f"{PREFIX}link"
    own.mkdir()
    (own / "shard.tar").write_text("cached")
    link.symlink_to(own)
    with scratch_folder("map", root=tmp_path) as held:
        (held / "b").write_text("b")
        assert not left.exists()
        assert remove_abandoned(tmp_path) == []
        assert (held / "b").exists()
    assert (own / "shard.tar").exists()


def test_another_users_folder_stays(tmp_path, monkeypatch):
    folder = tmp_path / f"{PREFIX}ray-x"
    folder.mkdir()
    (folder / "a").write_text("a")
    uid = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: uid + 1)
    assert remove_abandoned(tmp_path) == []
    monkeypatch.undo()
    assert remove_abandoned(tmp_path) == [folder]


HOLDING = """
import sys
import tempfile
from d2ls.scratch import only_process
with only_process("sweep-x"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_name_is_held_by_one_process_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDING], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError), only_process("sweep-x"):
        pass
    other.kill()
    other.communicate()
    with only_process("sweep-x"), only_process("sweep-y"):
        assert remove_abandoned() == []
    assert not any(tmp_path.iterdir())


def test_an_old_empty_folder_is_removed_and_a_new_one_is_not(tmp_path):
    folder = tmp_path / f"{PREFIX}sweep-x"
    folder.mkdir()
    assert remove_abandoned(tmp_path) == []
    os.utime(folder, (0, 0))
    assert remove_abandoned(tmp_path) == [folder]


@pytest.mark.parametrize("scratch", [None, "export"])
def test_a_written_file_appears_whole_or_not_at_all(tmp_path, scratch):
    target = tmp_path / "folder" / "a.bin"
    with atomic_write(target, scratch=scratch) as partial:
        partial.write_bytes(b"old")
        assert not target.exists()
        assert partial.name.endswith(".tmp" if scratch is None else "a.bin")
    with pytest.raises(TypeError), atomic_write(target, scratch=scratch) as partial:
        partial.write_bytes("not bytes")
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_a_written_folder_replaces_none_that_holds_files(tmp_path):
    target = tmp_path / "model"
    for number in range(2):
        with (
            nullcontext() if number == 0 else pytest.raises(OSError, match="not empty"),
            atomic_write(target, scratch="import") as partial,
        ):
            partial.mkdir()
            (partial / "weights").write_text(str(number))
    assert (target / "weights").read_text() == "0"
    assert list(tmp_path.iterdir()) == [target]
