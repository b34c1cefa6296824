"""The files of a raw data set: a folder, or zip archives in it, seen as one tree of relative paths."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from d2ls.errors import DataError
from sharding.archives import check_md5, list_members, open_member, read_member


@dataclass(frozen=True, order=True)
class FileRef:
    """A file on disk, or a member of a zip archive on disk.

    Attributes:
        path: absolute path of the file or archive.
        member: path inside the archive; empty for a plain file.
        stamp: changes when the content does (size and time, or size and CRC), so that work is redone.
    """

    path: str
    member: str = ""
    stamp: str = ""

    def __str__(self) -> str:
        return f"{self.path}!{self.member}" if self.member else self.path

    @property
    def suffix(self) -> str:
        """Lower-case suffix with its dot."""
        return PurePosixPath(self.member or self.path).suffix.lower()

    @property
    def stem(self) -> str:
        """File name without folder and last suffix."""
        return PurePosixPath(self.member or self.path).stem

    @property
    def gdal(self) -> str:
        """Path for GDAL."""
        return f"/vsizip/{{{self.path}}}/{self.member}" if self.member else self.path

    def read(self) -> bytes:
        """Reads the whole content.

        Raises:
            DataError: unreadable.
        """
        if self.member:
            return read_member(self.path, self.member)
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error

    def stream(self) -> BinaryIO:
        """Opens the content for reading, for callers that need only its beginning.

        Raises:
            DataError: unreadable.
        """
        if self.member:
            return open_member(self.path, self.member)
        try:
            return Path(self.path).open("rb")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class FileTree:
    """The files below a root by relative path (forward slashes, Unicode NFC), in natural order; no hidden ones."""

    root: Path
    files: Mapping[str, FileRef]

    @classmethod
    def open(
        cls,
        root: str | Path,
        *,
        md5: Mapping[str, str] | None = None,
        check_archives: bool = True,
        follow_links: bool = False,
    ) -> "FileTree":
        """Lists a folder (and the zip archives in it) or a single zip archive.

        The path of an archive's member is the archive's folder plus its path inside; a plain file with that path wins.

        Args:
            root: folder or archive.
            md5: published sums by archive name.
            check_archives: compare archives with them.
            follow_links: accept symbolic links that lead out of the folder.

        Raises:
            DataError: no such folder; a link out of it, to itself or to nothing; an archive that is refused; two files
                whose names differ only in their Unicode form.
        """
        top = Path(root).expanduser().absolute()
        if not top.exists():
            raise DataError(
                f"{top}: no such folder. Point data.root at the unpacked data set or its archives."
            )
        single = top.is_file()
        files: dict[str, FileRef] = {} if single else _composed(_walk(top, follow_links))
        archives = (
            {top.name: top} if single else {n: Path(r.path) for n, r in files.items() if r.suffix == ".zip"}
        )
        for name, archive in sorted(archives.items()):
            expected = (md5 or {}).get(archive.name)
            if check_archives and expected:
                check_md5(archive, expected)
            folder = PurePosixPath(name).parent
            members = (
                (str(folder / member), FileRef(str(archive), member, f"{entry.file_size}-{entry.CRC:08x}"))
                for member, entry in list_members(archive).items()
                if not is_hidden(member)
            )
            files = _composed(members) | files
        if not files:
            raise DataError(
                f"{top}: the folder is empty. Point data.root at the unpacked data set or its archives."
            )
        return cls(top, dict(sorted(files.items(), key=lambda item: natural(item[0]))))

    def find(self, pattern: str) -> Iterator[tuple[re.Match[str], FileRef]]:
        """Yields the files whose relative path ends in a match of a regular expression, in natural order.

        The match may start at any folder: data sets are unpacked with and without a folder around them.
        """
        rule = re.compile(rf"(?:^|.*/){pattern}$")
        for name, ref in self.files.items():
            match = rule.match(name)
            if match:
                yield match, ref


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts `2.png` before `10.png`."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def is_hidden(path: str | PurePosixPath) -> bool:
    """Returns whether a part of a relative path begins with a dot, or is the `__MACOSX` of zip archives."""
    parts = PurePosixPath(path).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)


def composed(text: str) -> str:
    """Returns text in Unicode form NFC: macOS spells file names decomposed (NFD), most other systems composed."""
    return unicodedata.normalize("NFC", text)


def _composed(named: Iterable[tuple[str, FileRef]]) -> dict[str, FileRef]:
    files: dict[str, FileRef] = {}
    for name, ref in named:
        other = files.setdefault(composed(name), ref)
        if other is not ref:
            raise DataError(
                f"{other} and {ref}: the two names look the same and differ only in their Unicode form "
                "(NFC, NFD). Rename or delete one of them."
            )
    return files


def _walk(top: Path, follow_links: bool) -> Iterator[tuple[str, FileRef]]:
    home = top.resolve()
    for folder, folders, names in os.walk(top, followlinks=True, onerror=refuse_unreadable):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        names = [name for name in names if not is_hidden(name)]
        for name in (*folders, *names):
            if (here / name).is_symlink():
                _check_link(here / name, top, home, follow_links)
        for name in names:
            file = here / name
            require_utf8(file)
            yield file.relative_to(top).as_posix(), FileRef(str(file), "", file_stamp(file))


def require_utf8(path: str | Path) -> None:
    """Refuses a name that is not UTF-8, as of archives from old systems: most libraries cannot open it.

    Raises:
        DataError: shows the name with its bytes.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise DataError(f"{shown}: this name is not UTF-8. Rename it, for instance with convmv") from error


def refuse_unreadable(error: OSError) -> None:
    """Refuses a folder that exists and cannot be listed, for `os.walk`, which would leave it out.

    Raises:
        DataError: names the folder.
    """
    if isinstance(error, FileNotFoundError):
        return
    raise DataError(
        f"{error.filename}: this folder cannot be read: {error.strerror}. Correct its permissions, or move it"
    ) from error


def _check_link(link: Path, top: Path, home: Path, follow_links: bool) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop, before Python 3.13
        raise DataError(f"{link}: this link leads to itself or to nothing. Delete or repair it.") from error
    if not follow_links and not target.is_relative_to(home):
        raise DataError(
            f"{link}: this link leads out of the data set, to {target}. "
            "Set data.follow_links=true to follow it."
        )
    above = [folder for folder in link.parents if folder.is_relative_to(top)]
    if target in [folder.resolve() for folder in above]:
        raise DataError(f"{link}: this link leads back to {target}, a folder it is in. Delete it.")


def file_stamp(file: str | Path) -> str:
    """Returns size and time of a file.

    Raises:
        DataError: unreadable.
    """
    try:
        status = Path(file).stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    return f"{status.st_size}-{status.st_mtime_ns}"
