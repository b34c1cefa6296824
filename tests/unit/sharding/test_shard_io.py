import pytest

from d2ls.errors import StorageError
from sharding.shard_io import delete_leftovers, only_writer, target_file


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with target_file(str(tmp_path), "train/a.tar") as stream:
        stream.write(b"whole")
        assert not (tmp_path / "train" / "a.tar").exists()
    with pytest.raises(ZeroDivisionError), target_file(str(tmp_path), "train/b.tar") as stream:
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["a.tar"]
    assert (tmp_path / "train" / "a.tar").read_bytes() == b"whole"


def test_files_of_a_killed_command_are_removed_and_those_of_a_running_one_stay(tmp_path):
    left = tmp_path / "train" / "d2ls.tmp-shard-killed"
    left.mkdir(parents=True)
    (left / "a.tar").write_bytes(b"half")
    with target_file(str(tmp_path), "train/b.tar") as stream:
        delete_leftovers(str(tmp_path))
        assert not left.exists()
        stream.write(b"whole")
    assert (tmp_path / "train" / "b.tar").read_bytes() == b"whole"


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    def denied(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", denied)
    message = r"cannot be written: .*Permission denied\. Name another folder"
    with pytest.raises(StorageError, match=message), only_writer(str(tmp_path)):
        pass
