import hashlib
import stat
import zipfile

import pytest

from d2ls.errors import DataError
from sharding.archives import list_members
from sharding.files import FileTree, is_hidden, natural


def archive(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


@pytest.mark.parametrize(("member", "reason"), [
    (("/etc/passwd", b"x"), "absolute path"),
    (("C:/x.png", b"x"), "absolute path"),
    (("..\\x.png", b"x"), "absolute path"),
    (("a/../../x.png", b"x"), "path into a parent folder"),
    (link("a.png", "/etc/passwd"), "a link or special file"),
])  # fmt: skip
def test_dangerous_members_are_refused(tmp_path, member, reason):
    path = archive(tmp_path / "a.zip", ("good.png", b"x"), member)
    with pytest.raises(DataError, match=rf"a\.zip: member .* is refused: {reason}"):
        list_members(path)


def test_a_name_given_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "a.zip", ("a.png", b"x"), ("a.png", b"y"))
    with pytest.raises(DataError, match="the name occurs twice"):
        list_members(path)


def test_a_decompression_bomb_is_refused_without_unpacking(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("zeros.png", "w") as stream:
        for _ in range(300):
            stream.write(bytes(2**20))
    with pytest.raises(DataError, match=r"decompression bomb \(\d+ bytes unpack to 314572800\)"):
        list_members(path)


def test_what_is_no_archive_is_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"a\.zip: not a readable zip archive"):
        FileTree.open(tmp_path)


def test_md5_sums_are_compared(tmp_path):
    path = archive(tmp_path / "a.zip", ("x.png", b"x"))
    right = hashlib.md5(path.read_bytes()).hexdigest()
    assert list(FileTree.open(tmp_path, md5={"a.zip": right}).files) == ["a.zip", "x.png"]
    with pytest.raises(DataError, match=r"a\.zip: MD5 is .*check_archives=false"):
        FileTree.open(tmp_path, md5={"a.zip": "0" * 32})
    FileTree.open(tmp_path, md5={"a.zip": "0" * 32}, check_archives=False)


def test_an_unpacked_file_wins_over_its_archive(tmp_path):
    archive(tmp_path / "Train.zip", ("Train/a.png", b"packed"), ("Train/b.png", b"packed"))
    (tmp_path / "Train").mkdir()
    (tmp_path / "Train" / "a.png").write_bytes(b"plain")
    files = FileTree.open(tmp_path).files
    assert files["Train/a.png"].read() == b"plain"
    assert files["Train/b.png"].read() == b"packed"
    assert str(files["Train/b.png"]).endswith("Train.zip!Train/b.png")


def test_links_out_of_the_folder_are_refused_unless_allowed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(b"x")
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in" / "b.png").write_bytes(b"x")
    (root / "c.png").symlink_to(root / "in" / "b.png")
    assert list(FileTree.open(root).files) == ["c.png", "in/b.png"]
    (root / "out").symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match=r"root/out: this link leads out .*follow_links=true"):
        FileTree.open(root)
    assert "out/a.png" in FileTree.open(root, follow_links=True).files


def test_a_missing_or_empty_root_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        FileTree.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="the folder is empty"):
        FileTree.open(tmp_path)


def test_numbers_in_names_are_ordered_as_numbers():
    assert sorted(["10.png", "9.png", "a2", "a10"], key=natural) == ["9.png", "10.png", "a2", "a10"]


@pytest.mark.parametrize(("target", "message"), [
    ("self.tif", r"images/self\.tif: this link leads to itself or to nothing"),
    ("nowhere.tif", r"images/self\.tif: this link leads to itself or to nothing"),
    (".", r"images/self\.tif: this link leads back to .*/images, a folder it is in"),
    ("../other", r"link leads back to .*/images, a folder it is in"),
])  # fmt: skip
def test_links_in_a_circle_are_named(tmp_path, target, message):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.tif").write_bytes(b"x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "back").symlink_to("../images")
    (tmp_path / "images" / "self.tif").symlink_to(target)
    with pytest.raises(DataError, match=message):
        FileTree.open(tmp_path)


def test_hidden_files_are_left_out_on_disk_and_in_archives(tmp_path):
    names = ("a.png", "._a.png", ".trash/b.png", "__MACOSX/c.png")
    archive(tmp_path / "x.zip", *((f"in/{name}", b"x") for name in names))
    for name in names:
        (tmp_path / "on" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "on" / name).write_bytes(b"x")
    assert list(FileTree.open(tmp_path).files) == ["in/a.png", "on/a.png", "x.zip"]
    assert not is_hidden("../a/b.c.png")


def test_names_are_compared_in_one_unicode_form(tmp_path):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    (tmp_path / decomposed).write_bytes(b"x")
    tree = FileTree.open(tmp_path)
    assert list(tree.files) == [composed]
    assert tree.files[composed].read() == b"x"
    (tmp_path / composed).write_bytes(b"y")
    with pytest.raises(DataError, match="differ only in their Unicode form"):
        FileTree.open(tmp_path)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, closed_folder) -> None:
    (tmp_path / "images" / closed_folder).mkdir(parents=True)
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="closed: this folder cannot be read: Permission denied"):
        FileTree.open(tmp_path)
