"""The files of a SAFE product, in a folder or in a zip archive, which is read in place.

Neither is trusted: names lead nowhere but into the product, and the members of an archive are checked as
before unpacking.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from tilewise.datasets.acquire.download import list_members
from tilewise.datasets.core.errors import SceneError, UnreadableImageError
from tilewise.datasets.scenes.rasters import zipped_source

METADATA_NAMES = ("MTD_MSIL1C.xml", "MTD_MSIL2A.xml")


@dataclass(frozen=True, slots=True)
class Product:
    """A product whose files are named by their path below its folder, with `/`.

    Attributes:
        name: of the product, in messages.
        root: its folder, or its archive.
        members: of an archive: the member of each file; None: a folder.
    """

    name: str
    root: Path
    members: Mapping[str, str] | None = None

    def find(self, pattern: str) -> list[str]:
        """Return the files that match `GRANULE/*/…`, in order; `*` stands for one part of a path."""
        if self.members is None:
            return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))
        parts = pattern.split("/")
        return sorted(name for name in self.members if _matches(name.split("/"), parts))

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Return the content of a file, at most `max_bytes` and one more; None where it does not exist.

        Raises:
            UnreadableImageError: it cannot be read.
        """
        try:
            if self.members is None:
                path = self.root / name
                if not path.is_file():
                    return None
                with path.open("rb") as file:
                    return file.read(max_bytes + 1)
            if name not in self.members:
                return None
            with zipfile.ZipFile(self.root) as archive, archive.open(self.members[name]) as member:
                return member.read(max_bytes + 1)
        except (OSError, zipfile.BadZipFile) as error:
            raise UnreadableImageError(f"{self.name}: {name} cannot be read: {error}") from error

    def source(self, name: str) -> Path | str | None:
        """Return what opens a file as a raster; None where the product has no such file inside."""
        if self.members is not None:
            member = self.members.get(name)
            return None if member is None else zipped_source(self.root, member)
        if PurePosixPath(name).is_absolute() or "\0" in name:
            return None
        whole = self.root.resolve()
        path = (whole / name).resolve()
        return path if path.is_relative_to(whole) and path.is_file() else None


def open_product(path: Path) -> Product:
    """Return the product in a folder or in a zip archive.

    Raises:
        SceneError: the archive has no product, or several.
        TilewiseError: it is not a readable zip, or its members could lead elsewhere.
    """
    if path.is_dir():
        return Product(path.name, path)
    names = [info.filename for info in list_members(path) if not info.is_dir()]
    found = [name for name in names if name.rpartition("/")[2] in METADATA_NAMES and name.count("/") <= 1]
    if len(found) != 1:
        raise SceneError(
            f"{path.name}: it has {len(found) or 'no'} SAFE products; unpack it and name a folder"
        )
    inside = found[0].rpartition("/")[0]
    prefix = f"{inside}/" if inside else ""
    members = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return Product(path.name, path, members)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
