"""Archives that somebody cut, damaged or made to harm: images, refused entries, or one message; never for ever."""

import io
import lzma
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from bigmodel.data import images
from bigmodel.data.record import Bad, ReadOptions, Record
from bigmodel.data.sources import open_rows
from bigmodel.errors import DataError

NAMES = ("train/cats/1.png", "train/cats/2.png", "train/dogs/a long name " + "x" * 120 + ".png", "train/dogs/é.png")
NUM_DAMAGED = 150


def png() -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 3), 9).save(out, "PNG")
    return out.getvalue()


def taped(kind: str = "", form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{kind}", format=form) as archive:  # type: ignore[call-overload]
        for name in NAMES:
            member = tarfile.TarInfo(name)
            member.size = len(png())
            archive.addfile(member, io.BytesIO(png()))
    return out.getvalue()


def zipped(how: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name in NAMES:
            archive.writestr(name, png())
    return out.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = struct.pack(">iq", -1, size) if size < 0 else b"\x80" + size.to_bytes(11, "big")  # base-256
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(record: bytes) -> bytes:
    line = next(b"%d %s\n" % (n, record) for n in range(9, 99) if len(b"%d %s\n" % (n, record)) == n)
    return header("pax", len(line), tarfile.XHDTYPE) + padded(line)


ENTRY = header("train/cats/1.png", len(png())) + padded(png())
HARMFUL = {
    "a header that is the next one too": ENTRY + header("train/cats/2.png", -512),
    "a header that goes back to the first": ENTRY + header("train/cats/2.png", -512 - len(ENTRY)),
    "a pax size that goes back": ENTRY + pax(b"size=-1536") + header("train/cats/2.png", 0),
    "a pax header of megabytes": header("pax", 2 << 20, tarfile.XHDTYPE) + bytes(2 << 20) + ENTRY,
    "a name of a negative length": ENTRY + header("name", -512, tarfile.GNUTYPE_LONGNAME),
    "pax headers without end": pax(b"comment=a") * 2000 + ENTRY,
    "a map of holes that is none": pax(b"GNU.sparse.map=a") + ENTRY,
    "a header that is damaged": ENTRY + header("train/cats/2.png", 9)[:-1] + b"x" + bytes(512),
    "a header that is cut": ENTRY + header("train/cats/2.png", 9)[:300],
}


@pytest.mark.parametrize("kind", ["tar", "tar.xz"])
@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_tar_is_one_message(tmp_path: Path, what: str, kind: str) -> None:
    file = tmp_path / f"pets.{kind}"
    data = HARMFUL[what] + (b"" if "cut" in what else bytes(1024))
    file.write_bytes(lzma.compress(data) if kind == "tar.xz" else data)
    with pytest.raises(DataError, match=f"{file}: a damaged archive: ") as said:
        for number, _ in enumerate(images.read_images(str(file))):
            assert number < 9, "it is read for ever"
    assert "\n" not in str(said.value) and len(str(said.value)) < 300


def spoilt(data: bytes, start: bytes, at: int, value: bytes) -> bytes:
    """The archive with other bytes at this place after the last that starts so."""
    place = data.rindex(start) + at
    return data[:place] + value + data[place + len(value) :]


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"
SPOILT = {
    "its checksum": (spoilt(zipped(), CENTRAL, 16, b"\0\0\0\0"), "Bad CRC-32"),
    "its bytes": (spoilt(zipped(), LOCAL, len(NAMES[-1].encode()) + 30, b"\xff" * 9), "Error -3 while decompressing"),
    "its name": (spoilt(zipped(), LOCAL, 30, b"\xff"), "can't decode byte 0xff"),
    "a password": (spoilt(zipped(), CENTRAL, 8, b"\1\x08"), "password required"),
    "how it is packed": (spoilt(zipped(), CENTRAL, 10, b"\x63\0"), "compression method is not supported"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_an_entry_of_a_zip_that_cannot_be_unpacked_is_quarantined_alone(tmp_path: Path, what: str) -> None:
    file = tmp_path / "pets.zip"
    data, reason = SPOILT[what]
    file.write_bytes(data)
    *good, bad = read(file)
    assert [item.source for item in good] == [f"{file}/{name}" for name in NAMES[:-1]]
    assert all(isinstance(item, Record) and item.values["image"] == png() for item in good)
    assert isinstance(bad, Bad) and (bad.source, bad.line) == (f"{file}/{NAMES[-1]}", 4) and reason in bad.reason


def test_a_zip_of_a_version_that_is_to_come_is_one_message(tmp_path: Path) -> None:
    file = tmp_path / "pets.zip"
    file.write_bytes(spoilt(zipped(), CENTRAL, 6, b"\xff"))
    with pytest.raises(DataError, match="is a zip archive. Unpack it"):
        read(file)


def read(file: Path) -> list[Record | Bad]:
    return list(open_rows(str(file), ReadOptions())[1])


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, or some bytes of it others."""
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    other = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        other[rng.randrange(len(other))] = rng.choice((0, 0xFF, rng.randrange(256)))
    return bytes(other)


ARCHIVES = {
    "pets.zip": zipped(),
    "stored.zip": zipped(zipfile.ZIP_STORED),
    "lzma.zip": zipped(zipfile.ZIP_LZMA),
    "pets.tar": taped(),
    "gnu.tar": taped(form=tarfile.GNU_FORMAT),
    "pets.tar.gz": taped("gz"),
    "pets.tar.xz": taped("xz"),
    "pets.tar.bz2": taped("bz2"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_any_damage_of_an_archive_is_entries_or_one_message(tmp_path: Path, name: str) -> None:
    file, rng = tmp_path / name, random.Random(name)
    outcomes = set()
    for _ in range(NUM_DAMAGED):
        file.write_bytes(damaged(ARCHIVES[name], rng))
        try:
            for item in read(file):
                assert isinstance(item, Bad) or item.values["image"] is not None
                outcomes.add(type(item))
        except DataError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error)
            outcomes.add(DataError)
    assert outcomes >= {Record, DataError}
