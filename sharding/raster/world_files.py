"""World files: six numbers beside an image that place it, which GDAL reads, and ignores if they are something else."""

from pathlib import Path, PurePosixPath

from d2ls.errors import DataError
from sharding.archives import list_members
from sharding.files import FileRef, file_stamp


def files_beside(ref: FileRef) -> list[FileRef]:
    """Returns the world files and the .aux.xml beside an image, on disk or in its archive."""
    kind, name = ref.suffix[1:], PurePosixPath(ref.member or ref.path)
    endings = (f".{kind[0]}{kind[-1]}w", f".{kind}w", ".wld")
    names = {str(name.with_suffix(case)) for ending in endings for case in (ending, ending.upper())}
    names.add(f"{name}.aux.xml")
    if not ref.member:
        return [FileRef(path, "", file_stamp(path)) for path in sorted(names) if Path(path).is_file()]
    members = list_members(Path(ref.path))
    stamps = {name: f"{members[name].file_size}-{members[name].CRC:08x}" for name in names if name in members}
    return [FileRef(ref.path, name, stamp) for name, stamp in sorted(stamps.items())]


def check_world(file: FileRef) -> None:
    """Refuses a world file that GDAL would silently ignore.

    Raises:
        DataError: it does not hold six numbers.
    """
    if file.suffix == ".xml":
        return
    content = file.read()
    try:
        numbers = [float(word) for word in content.decode().split()]
    except ValueError:
        numbers = []
    if len(numbers) != 6:
        raise DataError(
            f"{file}: a world file holds six numbers; correct it, or delete it if it is something else"
        )
