from pathlib import Path

import pytest

from d2ls import storage
from d2ls.errors import StorageError


def test_local_locations_by_path_and_by_uri(tmp_path):
    uri = f"file://{tmp_path}/a/b.bin"
    storage.write_bytes(uri, b"0123456789")
    path = storage.local_path(uri)
    assert path == tmp_path / "a" / "b.bin"
    assert storage.is_local(uri)
    assert storage.read_bytes(str(path)) == b"0123456789"
    assert storage.read_range(path, 3, 4) == b"3456"
    assert storage.read_range(path, 8, 9) == b"89"
    assert storage.info(path).size == 10
    assert [Path(entry.path).name for entry in storage.list_files(tmp_path / "a")] == ["b.bin"]
    assert storage.list_files(tmp_path / "nowhere") == []
    storage.delete(tmp_path / "a")
    assert not storage.exists(path)
    storage.delete(path)


def test_a_hash_sign_belongs_to_the_name(monkeypatch):
    """Else `run#1` and `run#2` would be one folder."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://localhost:1")
    assert storage.resolve("s3://bucket/run#1/a")[1] == "bucket/run#1/a"
    assert storage.local_path("file:///data/run#1/a") == Path("/data/run#1/a")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hush@bucket/x",
        "s3://AKIA:hush@bucket/x?endpoint_override=localhost:1",
        "s3://AKIA:hu/sh@bucket/x",
        "s3:AKIA:hush@bucket/x",
        "hdfs://me:hush@host:9000/x",
        "abfs://box:hu/sh==@account/x",
        "abfss://box@account/x?tenant_id=a&client_secret=hush",
        "abfss://box@account/x?sv=1&sig=hush",
    ],
)
def test_a_location_with_a_password_is_refused_and_not_shown(uri):
    with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as refused:
        storage.resolve(uri)
    assert "hu" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a:b@c", "s3://bucket/x?region=eu-west-1", "abfs://box@account/a:b@c", "hdfs://host:9000/a@b",
        "gs://anonymous@bucket/x", "runs/a:b@c", "//a:b@c/x", "file:///a:b@c", "models:/a@champion",
    ],
)  # fmt: skip
def test_a_location_without_a_password_is_not_refused(uri):
    storage.check_no_password(uri)


def test_joining_keeps_the_scheme():
    assert storage.join("s3://bucket/x/", "a", "b.tar") == "s3://bucket/x/a/b.tar"
    assert storage.join("/", "a") == "/a"
    assert not storage.is_local("s3://bucket/x")
    with pytest.raises(StorageError, match="is not a local path"):
        storage.local_path("s3://bucket/x")


def test_writing_leaves_the_whole_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    storage.write_bytes(target, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"a\.json: .*No space left"):
        storage.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_uploading_copies_and_names_what_fails(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    storage.upload(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").read_bytes() == b"x"
    with pytest.raises(StorageError, match="missing"):
        storage.upload(tmp_path / "missing", tmp_path / "c")
    with pytest.raises(StorageError, match="nowhere"):
        storage.read_bytes(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="cannot open this kind of storage"):
        storage.resolve("ftpx://host/x")
