"""Images where they lie: folders per class, single files, archives, and the paths in a table's column.

A folder of class folders, or an archive of them, is one source; so is a part of an archive, `digits.tar.xz/train`. All
of them may lie in object storage. Rows come in the order of their names, in an archive in the order they stand there,
whose entry `a/../b` is `b`.
A row's label is the folder that the image lies in. Archives are read from the stream, and nothing is written to disk:
no entry can leave a target.
"""

from __future__ import annotations

import hashlib
import lzma
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedReader
from typing import IO

from bigmodel.data import files
from bigmodel.data.progress import advance
from bigmodel.data.record import Bad, Record, excerpt
from bigmodel.errors import DataError, first_line

MAX_BYTES = 256 << 20  # of one image file
TOO_LARGE = f"the file has more than {MAX_BYTES >> 20} MB"
MAX_HEADER = 1 << 20  # bytes of a tar header that says more of the entry after it, such as a long name
HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, struct.error, EOFError, RuntimeError,
    ArithmeticError, LookupError, ValueError
)  # fmt: skip
"""What damage makes of tarfile and zipfile."""
Entry = tuple[str, bytes | str]  # its name; its bytes, or why they cannot be read
Below = Callable[[str], str | None]  # the name of an archive's entry -> that in the part that is read, if it lies there


def holds_images(source: str) -> bool:
    """Whether the source as it is named is an image, a folder, or an archive or a part of one."""
    return files.is_image(source) or files.is_folder(source) or _cut(source) is not None


def _cut(source: str) -> tuple[str, str] | None:
    """An archive of images, and the path inside it; None if the source names none. A zip file may hold anything."""
    cut = files.archive_part(source)
    return cut if cut and (not _is_zip(cut[0]) or _zip_has_images(cut[0])) else None


def _is_zip(file: str) -> bool:
    return files.suffix(file) == ".zip"


def _zip_has_images(file: str) -> bool:
    try:
        with files.seekable(file) as stored, zipfile.ZipFile(stored) as archive:
            return any(name.lower().endswith(files.IMAGE_SUFFIXES) for name in archive.namelist())
    except (DataError, *DAMAGE):
        return False


def read_images(source: str) -> Iterator[Record | Bad]:
    """Every image of a source, in order; what has no label has the label None."""
    number = 0
    for name, data in _entries(source):
        number += 1
        label = posixpath.basename(posixpath.dirname(name)) or None
        place = files.within(source, name) if name else source
        if isinstance(data, str):
            yield Bad(place, number, "image", data, "")
        else:
            yield Record(place, number, {"image": data, "label": label})
    if not number:
        raise DataError(f"{source}: holds no image ({' '.join(files.READ_IMAGES)})")


def passed_over(source: str) -> str:
    """A line on the files of a folder of images that are none by their names; empty where there are none."""
    others = files.others_below(source) if files.is_folder(source) else {}
    kinds = ", ".join(f"{number:,} {f'of {end}' if end else 'without an extension'}" for end, number in others.items())
    return f"{source}: passed over as no images by their names: {kinds}" if kinds else ""


def labelled(source: str, items: Iterable[Record | Bad]) -> Iterator[Record | Bad]:
    """Those in a class folder, and why not for each that is in none. DataError, after them, where none is in one."""
    loose, others = "", 0
    for item in items:
        if isinstance(item, Record) and item.values["label"] is None:
            loose = loose or item.source
            yield Bad(item.source, item.line, "label", "the image lies in no class folder, and so has no label", "")
        else:
            others += 1
            yield item
    if loose and not others:
        raise DataError(
            f"{source}: {loose} and all others lie in no class folder. The label of an image is the folder it lies in, "
            "as in FOLDER/cat/1.png: name that FOLDER, or a table of paths (data.image) and labels "
            "(data.label)"
        )


def named_by(source: str, items: Iterable[Record | Bad], column: str) -> str:
    """A digest of the size and time of change of the images that a column names; empty where it holds none."""
    total = hashlib.sha256()
    for item in items:
        path = item.values.get(column) if isinstance(item, Record) else None
        if isinstance(item, Record) and path is not None and not isinstance(path, str):
            return ""  # bytes, which are part of the source
        if path:
            try:
                file = _named(source, path)
                total.update(f"{file}\0{files.stamp(file)}\0".encode("utf-8", "replace"))
            except (DataError, ValueError):
                pass  # whoever reads it says why
    return total.hexdigest()


def _named(source: str, path: str) -> str:
    """The file that a table names: by a path from the table's own folder, or as a whole URI of object storage."""
    scheme, is_uri, _ = path.partition("://")
    if is_uri and scheme not in files.ARROW_SCHEMES:
        raise DataError("an address is not followed: name a file, or an object, as in s3://bucket/cat.png")
    if is_uri:
        return path
    if files.is_remote(source) and path.startswith("/"):
        raise DataError("a path from the root means nothing where the table lies: name it from the table, or in full")
    return files.beside(source, path)


def _entries(source: str) -> Iterator[Entry]:
    if cut := _cut(source):
        file, inside = cut
        yield from _archived(file, partial(_below, posixpath.normpath(inside)))
        return
    for name in files.images_below(source) if files.is_folder(source) else [""]:
        data = _read(files.within(source, name) if name else source)
        advance(num_bytes=0 if isinstance(data, str) else len(data))
        yield name, data


def _below(inside: str, name: str) -> str | None:
    """Where in this folder of an archive an entry lies, empty for what `inside` names itself; None for what is no image
    in it. A path from the root is in none."""
    path = posixpath.normpath(name)
    if path.startswith("/") or not path.lower().endswith(files.IMAGE_SUFFIXES) or posixpath.basename(path)[0] == ".":
        return None
    if inside in (".", path):
        return path if inside == "." else ""
    return path.removeprefix(f"{inside}/") if path.startswith(f"{inside}/") else None


def _read(file: str) -> bytes | str:
    with files.seekable(file) as stream:
        return _whole(stream)


def _whole(stream: IO[bytes] | None) -> bytes | str:
    """The bytes of a file, or that they are more than an image may have."""
    blocks, size = list[bytes](), 0  # to read MAX_BYTES would allocate as many for the smallest file
    while stream and size <= MAX_BYTES and (block := stream.read(files.BLOCK)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks) if size <= MAX_BYTES else TOO_LARGE


def _archived(file: str, below: Below) -> Iterator[Entry]:
    """The entries that lie below; others are not unpacked, as far as the format can pass them over."""
    try:
        with files.seekable(file) as stored:
            stream = BufferedReader(stored, files.BLOCK)  # type: ignore[type-var]  # each read may be a request
            yield from _zipped(stream, below) if _is_zip(file) else _taped(stream, below)
    except DAMAGE as error:
        raise DataError(f"{file}: a damaged archive: {first_line(error).rstrip(':')}") from None


class _Member(tarfile.TarInfo):
    """An entry whose header can be believed. tarfile reads one of a negative size for ever (CVE-2025-8194) and one that
    says more of the next entry whole, however large, and takes a damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):  # the archive does end
                raise
            raise tarfile.TarError(f"{error}") from None
        if member.size < 0 or (member.type in HEADERS and member.size > MAX_HEADER):
            raise tarfile.TarError(f"a header says that {member.size:,} bytes follow")
        return member


def _taped(stream: IO[bytes], below: Below) -> Iterator[Entry]:
    """Links come last, with the bytes of the entry that each stands for."""
    links: dict[str, list[str]] = {}
    with tarfile.open(fileobj=stream, mode="r:*", tarinfo=_Member) as archive:
        for member in _members(archive, stream):
            if (name := below(member.name)) is None:
                continue
            if member.isfile():
                yield name, _taken(archive, member)
            elif member.islnk() or member.issym():
                beside = posixpath.dirname(member.name) if member.issym() else ""
                links.setdefault(posixpath.normpath(posixpath.join(beside, member.linkname)), []).append(name)
        for member in archive if links else ():
            if member.isfile() and (names := links.pop(posixpath.normpath(member.name), [])):
                data = _taken(archive, member)
                yield from ((name, data) for name in names)
    for target, names in links.items():
        yield from ((name, f"a link to {target}, which is no file of the archive") for name in names)


def _taken(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    return _whole(archive.extractfile(member)) if member.size <= MAX_BYTES else TOO_LARGE


def _members(archive: tarfile.TarFile, stream: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The entries, each further on than the one before."""
    last, told = -1, 0
    for member in archive:
        if member.offset <= last:
            raise tarfile.TarError(f"after {member.name} it goes back to where it was")
        last = member.offset
        yield member
        advance(num_bytes=stream.tell() - told)
        told = stream.tell()


def _zipped(stream: IO[bytes], below: Below) -> Iterator[Entry]:
    """An entry that cannot be unpacked costs no other."""
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            advance(num_bytes=member.compress_size)
            if not member.is_dir() and (name := below(member.filename)) is not None:
                yield name, _unpacked(archive, member) if member.file_size <= MAX_BYTES else TOO_LARGE


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | str:
    try:
        with archive.open(member) as entry:
            return _whole(entry)
    except DAMAGE as error:  # a RuntimeError of one with a password
        return f"the entry cannot be unpacked: {first_line(error)}"


def fetched(record: Record, column: str) -> Record | Bad:
    """The record with the bytes of the image that its column names, relative to the record's own file."""
    path = record.values[column]
    try:
        data = _read(file := _named(record.source, path))
    except (DataError, ValueError) as error:  # a name with a null character is a ValueError
        return Bad(record.source, record.line, column, " ".join(f"{error}".split())[:300], excerpt(path))
    if isinstance(data, str):
        return Bad(record.source, record.line, column, f"{file}: {data}", excerpt(path))
    return Record(record.source, record.line, {**record.values, column: data})
