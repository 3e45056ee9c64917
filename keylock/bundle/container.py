"""Where the files of a bundle lie: in a folder, or in one `.klb` file.

A `.klb` file is an uncompressed zip archive that any unzip reads and that has exactly one spelling: sorted names, no
compression, fixed times, no extra fields. The reader accepts this spelling alone and never unpacks to disk, so that
there is nothing to hide in, nothing to blow up and no path to climb. Neither container is trusted: what comes out of
it is compared with signed digests by the caller.
"""

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from keylock.bundle.manifest import MANIFEST_FILE, check_file_name
from keylock.errors import BundleError, BundleTamperedError

__all__ = [
    "ARCHIVE_SUFFIX",
    "ArchiveFiles",
    "Content",
    "Files",
    "FolderFiles",
    "chunks_of",
    "open_files",
    "write_archive",
]

ARCHIVE_SUFFIX: Final = ".klb"

Content = bytes | Path

_MAX_FILES: Final = 10_000
_MAX_ARCHIVE_BYTES: Final = 0xFFFF_FFFF
_CHUNK: Final = 1 << 20

# PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_NEEDED, _FLAGS, _STORED, _TIME, _DATE = 10, 0, 0, 0, 0x21
_MADE_BY_UNIX, _REGULAR_FILE = 0x0314, 0o100644 << 16


class Files(Protocol):
    """The files of a bundle, none of which is trusted."""

    def names(self) -> Sequence[str]:
        """Returns the names of all files, sorted."""
        ...

    def read(self, name: str, *, limit: int | None = None) -> bytes:
        """Returns the content of a file.

        Raises:
            BundleError: If it cannot be read, or has more than `limit` bytes.
        """
        ...

    def digest(self, name: str) -> str:
        """Returns `sha256:` and the digest of a file, whatever its size, in little memory."""
        ...


def open_files(path: Path) -> Files:
    """Returns the files of a folder or an archive.

    Raises:
        BundleError: If there is neither at the path, or what is there cannot be a bundle.
    """
    try:
        if path.is_dir():
            if not os.path.lexists(path / MANIFEST_FILE):
                raise BundleError(f"{path} is not a bundle, or not all of one: it has no {MANIFEST_FILE}")
            return FolderFiles(path)
        if path.is_file():
            return ArchiveFiles(path)
    except OSError as error:
        raise BundleError(f"cannot read the bundle {path}: {error.strerror or 'unreadable'}") from None
    raise BundleError(f"there is no bundle at {path}: give a bundle's folder or {ARCHIVE_SUFFIX} file")


class FolderFiles:
    """The files of a folder and the folders in it, none of them a link."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # One more than allowed is enough to refuse, however many there are.
        self._names = tuple(sorted(islice(self._walk(path, ""), _MAX_FILES + 1)))
        if len(self._names) > _MAX_FILES:
            raise BundleError(f"{path} is not a bundle: it has more than {_MAX_FILES} files")

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                try:
                    check_file_name(name)
                except ValueError:
                    # Escaped, because the name may hold whatever a terminal obeys.
                    shown = name.encode("unicode_escape").decode("ascii")
                    raise BundleTamperedError(shown, "has a name that no bundle uses") from None
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(folder / entry.name, name + "/")
                elif entry.is_file(follow_symlinks=False):
                    yield name
                else:
                    raise BundleTamperedError(name, "is a link or a special file")

    def names(self) -> Sequence[str]:
        """Returns the names of all files, sorted."""
        return self._names

    def read(self, name: str, *, limit: int | None = None) -> bytes:
        """Returns the content of a file."""
        with self._open(name) as file:
            return _read_limited(file, name, os.fstat(file.fileno()).st_size, limit)

    def digest(self, name: str) -> str:
        """Returns the digest of a file."""
        digest = hashlib.sha256()
        with self._open(name) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return "sha256:" + digest.hexdigest()

    def _open(self, name: str) -> BinaryIO:
        try:
            # A link or a pipe that was put there since the folder was listed is not followed and not waited for.
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            file = os.fdopen(os.open(self.path / name, flags | getattr(os, "O_BINARY", 0)), "rb")
        except OSError as error:
            raise BundleTamperedError(name, f"cannot be read ({error.strerror or 'unreadable'})") from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise BundleTamperedError(name, "is not a regular file")
        return file


@dataclass(frozen=True)
class _Member:
    """A file in an archive: `offset` is that of its local header, `start` that of its content."""

    name: str
    offset: int
    crc: int
    size: int

    @property
    def start(self) -> int:
        return self.offset + _LOCAL.size + len(self.name)

    def local_header(self) -> bytes:
        return _LOCAL.pack(_LOCAL_MAGIC, *self._common(), len(self.name), 0) + self.name.encode("ascii")

    def central_header(self) -> bytes:
        rest = (len(self.name), 0, 0, 0, 0, _REGULAR_FILE, self.offset)
        return _CENTRAL.pack(_CENTRAL_MAGIC, _MADE_BY_UNIX, *self._common(), *rest) + self.name.encode("ascii")

    def _common(self) -> tuple[int, ...]:
        return (_NEEDED, _FLAGS, _STORED, _TIME, _DATE, self.crc, self.size, self.size)


class ArchiveFiles:
    """The files of a `.klb` archive, read where they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._members = {member.name: member for member in self._parse(file)}

    def _parse(self, file: BinaryIO) -> list[_Member]:
        """Reads the local headers one after the other and compares all else with what they imply."""
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != _LOCAL_MAGIC:
            raise BundleError(f"{self.path} is not a bundle: neither a folder nor a {ARCHIVE_SUFFIX} archive")
        members: list[_Member] = []
        offset = 0
        while (member := self._parse_member(file, offset, size)) is not None:
            if members and member.name <= members[-1].name:
                raise BundleTamperedError(member.name, "is out of order in the archive")
            members.append(member)
            offset = member.start + member.size
            if len(members) > _MAX_FILES:
                raise BundleError(f"{self.path} is not a bundle: it has more than {_MAX_FILES} files")
        expected = _directory(members, offset)
        file.seek(offset)
        if file.read(len(expected) + 1) != expected:
            raise BundleTamperedError(self.path.name, "has a table of contents that does not fit its files")
        return members

    def _parse_member(self, file: BinaryIO, offset: int, size: int) -> _Member | None:
        file.seek(offset)
        header = file.read(_LOCAL.size)
        if header[:4] == _CENTRAL_MAGIC:
            return None
        if len(header) < _LOCAL.size or header[:4] != _LOCAL_MAGIC:
            raise BundleTamperedError(self.path.name, "is damaged or incomplete")
        _, _, _, method, _, _, crc, _, length, name_length, _ = _LOCAL.unpack(header)
        try:
            name = check_file_name(file.read(name_length).decode("ascii"))
        except ValueError:
            raise BundleTamperedError(self.path.name, "contains a file with a name that no bundle uses") from None
        if method != _STORED:
            raise BundleTamperedError(name, "is compressed, which no bundle's file is")
        member = _Member(name, offset, crc, length)
        if header + name.encode("ascii") != member.local_header():
            raise BundleTamperedError(name, "has a header in the archive that keylock did not write")
        if member.start + length > size:
            raise BundleTamperedError(name, "is cut off")
        return member

    def names(self) -> Sequence[str]:
        """Returns the names of all files, sorted."""
        return tuple(self._members)

    def read(self, name: str, *, limit: int | None = None) -> bytes:
        """Returns the content of a file."""
        member = self._members[name]
        with self._open() as file:
            file.seek(member.start)
            content = _read_limited(file, name, member.size, limit)
        self._check(member, zlib.crc32(content))
        return content

    def digest(self, name: str) -> str:
        """Returns the digest of a file."""
        member = self._members[name]
        digest, crc, left = hashlib.sha256(), 0, member.size
        with self._open() as file:
            file.seek(member.start)
            while left and (chunk := file.read(min(left, _CHUNK))):
                digest.update(chunk)
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        self._check(member, crc)
        return "sha256:" + digest.hexdigest()

    def _check(self, member: _Member, crc: int) -> None:
        # The digest that is compared later is what counts; this catches a changed checksum, which no digest covers.
        if crc != member.crc:
            raise BundleTamperedError(member.name, "differs from its checksum in the archive")

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise BundleError(f"cannot read the bundle {self.path}: {error.strerror or 'unreadable'}") from None


def write_archive(file: BinaryIO, contents: Mapping[str, Content]) -> None:
    """Writes a `.klb` archive; the same contents give the same bytes, whenever and wherever.

    Raises:
        BundleError: If it would have 4 GiB or more, or a file changed while it was written.
    """
    members: list[_Member] = []
    offset = 0
    for name in sorted(contents):
        crc, size = _measure(contents[name])
        member = _Member(check_file_name(name), offset, crc, size)
        members.append(member)
        offset = member.start + size
        if offset > _MAX_ARCHIVE_BYTES:
            raise BundleError(f"the bundle has 4 GiB or more: write it to a folder instead of a {ARCHIVE_SUFFIX} file")
        file.write(member.local_header())
        crc = 0
        for chunk in chunks_of(contents[name]):
            crc = zlib.crc32(chunk, crc)
            file.write(chunk)
        if crc != member.crc:
            raise BundleError(f"{name} changed while it was written: try again when nothing writes to it")
    file.write(_directory(members, offset))


def chunks_of(content: Content) -> Iterator[bytes]:
    """Yields the content piece by piece."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _directory(members: Sequence[_Member], offset: int) -> bytes:
    """Returns the end of an archive: the table of contents, which starts at `offset`, and its closing record."""
    table = b"".join(member.central_header() for member in members)
    return table + _END.pack(_END_MAGIC, 0, 0, len(members), len(members), len(table), offset, 0)


def _measure(content: Content) -> tuple[int, int]:
    """Returns checksum and size in bytes."""
    crc = size = 0
    for chunk in chunks_of(content):
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return crc, size


def _read_limited(file: BinaryIO, name: str, size: int, limit: int | None) -> bytes:
    if limit is not None and size > limit:
        raise BundleTamperedError(name, f"has {size} bytes, more than the {limit} it may have")
    content = file.read(size)
    if len(content) != size:
        raise BundleTamperedError(name, "is cut off")
    return content
