"""Which files are meant, and their bytes: local, s3://, hf:// or any other file system that fsspec or Arrow opens."""

import glob
import gzip
import hashlib
import os
import posixpath
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from bigmodel.data.progress import advance
from bigmodel.errors import BigmodelError, DataError, first_line, missing

BLOCK = 1 << 20
"""Bytes read at once."""

DATA_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".pq", ".txt")
"""What a folder is searched for; each may be followed by .gz."""

READ_IMAGES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
IMAGE_SUFFIXES = (*READ_IMAGES, ".heic", ".heif", ".avif", ".jp2", ".jxl")
"""Those whose format is not read are refused one by one."""
UNSEEN = ("thumbs.db", "desktop.ini")
"""What Windows leaves in a folder and does not show."""
PACKED = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
"""Archives that images are read from."""

ARROW_SCHEMES = ("s3", "gs", "gcs")
ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"7z\xbc\xaf": "7z",
}
_braces = re.compile(r"\{([^{}/]*,[^{}/]*)\}")


def resolve(spec: str | Iterable[str]) -> list[str]:
    """Names the files that a path, glob, folder, URI, or a list of them stands for: sorted, each once.

    A folder stands for the data files directly in it; one that has none, but images in or below it, is one source, and
    so is a part of an archive.  A remote folder of images ends in a slash.  Aligned files, `train.{de,en}.gz`, are one
    source and keep that name.  Raises DataError where nothing is found.
    """
    parts = [spec] if isinstance(spec, str) else list(spec)
    if not parts:
        raise DataError("no data files named. Name a file, a glob, a folder, or a list of them")
    found = sorted({file for part in parts for file in _expand(part)})
    for file in found:
        _check_name(file)
    return found


def _check_name(file: str) -> None:
    try:
        file.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(file).decode("utf-8", "backslashreplace")
        raise DataError(f"{shown}: the name of this file is not UTF-8. Rename it") from None


def alternatives(source: str) -> list[str]:
    """The words in the braces of aligned files; none of a file of its own."""
    found = _braces.search(source)
    return [word.strip() for word in found[1].split(",")] if found and not os.path.exists(local(source)) else []


def aligned(source: str) -> list[str]:
    """The files that a source with braces stands for, in the order of its words."""
    words = alternatives(source)
    ends = _braces.split(source, maxsplit=1)  # before the braces, what is in them, after
    return [f"{ends[0]}{word}{ends[2]}" for word in words]


def size(source: str) -> int:
    """Bytes of a source as stored: of a file, of aligned files together, of a folder of images."""
    if is_remote(source) and is_folder(source):
        return sum(int(told["size"]) for told in _listed(source).values())
    if (files := stored(source)) != [source]:
        return sum(size(file) for file in files)
    with reading(source):
        if not is_remote(source):
            return os.path.getsize(local(source))
        fs, path = _file_system(source)
        return int(fs.size(path))


def digest(source: str) -> str:
    """SHA-256 of the bytes of a file as stored, in hexadecimal; of several together, over names and bytes; of a remote
    folder, which would have to be fetched, over names, sizes and times of change."""
    total = hashlib.sha256()
    if is_remote(source) and is_folder(source):
        for name, told in _listed(source).items():
            total.update(f"{name}\0{_stamp(told)}\0".encode())
        return total.hexdigest()
    if (files := stored(source)) != [source]:
        for file in files:
            total.update(f"{file}\0{digest(file)}\0".encode())
        return total.hexdigest()
    with reading(source), _open_stored(source) as stream:
        while block := stream.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def stamp(file: str) -> str:
    """Size and time of change, by which a file is known to be still the same. DataError."""
    with reading(file):
        if is_remote(file):
            fs, path = _file_system(file)
            return _stamp(fs.info(path))
        stat = os.stat(local(file))
        return f"{stat.st_size}\0{stat.st_mtime_ns}"


def _stamp(told: Mapping[str, Any]) -> str:
    return f"{told['size']}\0{told.get('mtime') or told.get('created')}"


def blocks(source: str, told: bool = True) -> Iterator[bytes]:
    """The bytes of a file, decompressed if gzipped, a block at a time; `told` as progress."""
    with reading(source), _open_stored(source) as stored:
        stream, before = _decompressed(source, stored), 0
        while block := stream.read(BLOCK):
            yield block
            if told:
                advance(num_bytes=stored.tell() - before)
                before = stored.tell()


@contextmanager
def seekable(source: str) -> Iterator[IO[bytes]]:
    """A file opened for reading at any place; what goes wrong meanwhile becomes one DataError."""
    with reading(source), _open_stored(source) as stream:
        yield stream


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turns what can go wrong while a file is read into one DataError that names it."""
    try:
        yield
    except BigmodelError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{source}: {missing(local(source))}") from error
    except IsADirectoryError as error:
        raise DataError(f"{source}: is a folder, not a file") from error
    except PermissionError as error:
        raise DataError(f"{source}: may not be read (permission denied)") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{source}: damaged gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {first_line(error)[:300]}") from error
    except Exception as error:  # each remote file system has exceptions of its own
        if not is_remote(source):
            raise
        raise DataError(f"{source}: cannot be read: {type(error).__name__}: {first_line(error)[:300]}") from error


def suffix(source: str) -> str:
    """The file's extension in lower case, without .gz: "reviews.CSV.gz" -> ".csv"."""
    return os.path.splitext(_parted(source)[0].lower().removesuffix(".gz"))[1]


def is_image(file: str) -> bool:
    """By its name."""
    return _parted(file)[0].lower().endswith(IMAGE_SUFFIXES)


def is_folder(source: str) -> bool:
    return _parted(source)[0].endswith("/") if is_remote(source) else os.path.isdir(source)


def within(folder: str, name: str) -> str:
    """The file of this name in a folder, or in an archive."""
    start, query = _parted(folder)
    return f"{start.rstrip('/')}/{name}{query}"


def beside(source: str, path: str) -> str:
    """The file that this path names from the folder in which a source lies."""
    if not is_remote(source):
        folder = source.rpartition("/")[0]
        return path if os.path.isabs(path) or not folder else f"{folder}/{path}"
    start, query = _parted(source)
    scheme, _, place = start.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(place), path))}{query}"


def _parted(source: str) -> tuple[str, str]:
    """A URI without its query, and the query with its mark; a path is whole."""
    start, mark, query = source.partition("?") if is_remote(source) else (source, "", "")
    return start, mark + query


def archive_part(source: str) -> tuple[str, str] | None:
    """The archive that a source names, and the path in it: "digits.tar.xz/train"; None if it names none."""
    start, query = _parted(source)
    parts = start.split("/")
    for end in range(len(parts), 0, -1):
        file = "/".join(parts[:end])
        if file.lower().endswith(PACKED) and _is_file(file + query):
            return file + query, "/".join(parts[end:])
    return None


def _is_file(file: str) -> bool:
    if not is_remote(file):
        return os.path.isfile(local(file))
    with reading(file):
        fs, path = _file_system(file)
        return bool(fs.isfile(path))


def stored(source: str) -> list[str]:
    """The files whose bytes make a source: aligned files, an archive, the images of a folder, or the file itself."""
    if parts := aligned(source):
        return parts
    if cut := archive_part(source):
        return [cut[0]]
    return [within(source, name) for name in images_below(source)] if is_folder(source) else [source]


def images_below(folder: str) -> list[str]:
    """Paths of the images in and below a folder, from there, sorted; hidden ones are passed over."""
    if is_remote(folder):
        return list(_listed(folder))
    start = len(os.path.join(folder, ""))
    return sorted(path[start:] for path in _walk(folder) if is_image(path))


def others_below(folder: str) -> Counter[str]:
    """Extension -> how many files in and below a folder are no images by it; hidden ones are passed over."""
    names = [name.lower() for name in (_shown(folder) if is_remote(folder) else _walk(folder))]
    return Counter(os.path.splitext(name)[1] for name in names if not name.endswith((*IMAGE_SUFFIXES, *UNSEEN)))


def _walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Files in and below a folder. A link to a folder is followed, but not to one that the link lies in."""
    here = os.path.join(os.path.realpath(folder), "")
    if any(place.startswith(here) for place in above):
        return
    with reading(folder), os.scandir(folder) as listed:
        entries = sorted((entry for entry in listed if entry.name[0] != "."), key=lambda entry: entry.name)
    for entry in entries:
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # a link in a circle is none
            yield from _walk(entry.path, above | {here})
        else:
            yield entry.path


def _listed(folder: str) -> dict[str, Mapping[str, Any]]:
    """The images in and below a remote folder, sorted: path from there -> what its file system tells of it."""
    return {name: told for name, told in sorted(_shown(folder).items()) if is_image(name)}


def _shown(folder: str) -> dict[str, Mapping[str, Any]]:
    """The files in and below a remote folder that are not hidden, likewise."""
    with reading(folder):
        fs, path = _file_system(folder)
        begin = len(path.strip("/")) + 1
        found = {name.strip("/")[begin:]: told for name, told in fs.find(path, detail=True).items()}
    return {name: told for name, told in found.items() if not any(part[0] == "." for part in name.split("/") if part)}


def is_remote(source: str) -> bool:
    return "://" in source and not source.startswith("file://")


def local(path: str) -> str:
    if path.startswith("file://"):
        return unquote(urlsplit(path).path)
    return os.path.expanduser(path)


def _open_stored(source: str) -> IO[bytes]:
    if not is_remote(source):
        return open(local(source), "rb")
    fs, path = _file_system(source)
    return cast(IO[bytes], fs.open(path, "rb"))


def _decompressed(source: str, stream: IO[bytes]) -> IO[bytes]:
    start = stream.read(8)
    stream.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    for magic, name in ARCHIVES.items():
        if start.startswith(magic):
            raise DataError(f"{source}: is a {name} archive. Unpack it, or pack it with gzip, which is read as it is")
    return stream


def _file_system(source: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it."""
    import fsspec  # here: local files need neither fsspec nor Arrow

    scheme = urlsplit(source).scheme
    if scheme in ("http", "https"):
        raise DataError(f"{source}: http is not read. Download the file, or name it with s3:// or hf://")
    if scheme in ARROW_SCHEMES:
        start, query = _parted(source)
        bucket, _, key = start.partition("://")[2].partition("/")  # a key may have blanks, which no URI has
        fs, root = bucket_client(f"{scheme}://{bucket}{query}")
        return fs, f"{root}/{key}".rstrip("/")
    if scheme not in fsspec.available_protocols():
        raise DataError(f"{source}: no file system is called '{scheme}'. Known: a path, file://, s3://, gs://, hf://")
    try:
        fs, path = fsspec.url_to_fs(source)
    except ImportError as error:
        raise DataError(f"{source}: {scheme}:// needs another package: {first_line(error)[:300]}") from error
    return fs, path


@lru_cache(64)
def bucket_client(uri: str) -> tuple[Any, str]:
    """One client for each, of the endpoint that the environment names then: fsspec keeps all that are made, with their
    connections."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    arrow, root = FileSystem.from_uri(uri)
    return ArrowFSWrapper(arrow), root


def _expand(spec: str) -> list[str]:
    if parts := aligned(spec):
        for part in parts:
            if _expand(part) != [part]:
                raise DataError(f"{spec}: braces stand for aligned files, each named in full; {part} is no single file")
        return [spec]
    found = _expand_remote(spec) if is_remote(spec) else _expand_local(spec)
    if not found:
        raise DataError(f"{spec}: no file matches")
    return found


def _expand_local(spec: str) -> list[str]:
    path = local(spec)
    if os.path.isdir(path):
        inside = [os.path.join(path, name) for name in os.listdir(path) if _is_data(name)]
        if found := [file for file in inside if os.path.isfile(file)]:
            return found
        return [path] if images_below(path) else _refuse_folder(spec, sorted(os.listdir(path)))
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{spec}: is not a regular file")
    if os.path.exists(path):  # before the glob: a file may be called "a[1].csv"
        return [path]
    if archive_part(path):
        return [path]
    found = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
    return found or _refuse_missing(spec, path)


def _expand_remote(spec: str) -> list[str]:
    with reading(spec):
        fs, path = _file_system(spec)
        prefix, query = spec.split("://")[0] + "://", urlsplit(spec).query if "?" in spec and "*" not in spec else ""
        if fs.isfile(path):
            return [spec]
        if fs.isdir(path):
            names = [name for name in fs.ls(path, detail=False) if _is_data(name)]
            if not names:
                return [within(spec, "")] if _listed(spec) else _refuse_folder(spec, [])
        elif archive_part(spec):
            return [spec]
        else:
            names = [name for name in fs.glob(path) if fs.isfile(name)]
    return [prefix + name.removeprefix("/") + (f"?{query}" if query else "") for name in names]


def _is_data(path: str) -> bool:
    name = path.rstrip("/").rpartition("/")[2]
    return not name.startswith((".", "_")) and suffix(name) in DATA_SUFFIXES


def _refuse_folder(spec: str, names: list[str]) -> list[str]:
    what = f"It has: {', '.join(names[:8])}" if names else "It is empty"
    raise DataError(f"{spec}: no data file in this folder ({' '.join(DATA_SUFFIXES)}). {what}")


def _refuse_missing(spec: str, path: str) -> list[str]:
    folder, name = os.path.split(path)
    folder = folder or "."
    if glob.has_magic(path):
        raise DataError(f"{spec}: no file matches (searched from {os.getcwd()})")
    if not os.path.isdir(folder):
        raise DataError(f"{spec}: no such file: there is no folder {folder} (searched from {os.getcwd()})")
    if os.path.islink(path):
        raise DataError(f"{spec}: {missing(path)}")
    names = sorted(os.listdir(folder))
    near = get_close_matches(name, names, n=3)
    if near:
        raise DataError(f"{spec}: no such file. Did you mean {' or '.join(os.path.join(folder, n) for n in near)}?")
    have = [n for n in names if _is_data(n)][:8]
    raise DataError(f"{spec}: no such file. Data files in {folder}: {', '.join(have) or 'none'}")
