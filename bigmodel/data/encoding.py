"""From bytes to lines of text: which encoding a file is in, and its physical lines without holding the file."""

import codecs
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bigmodel.errors import DataError, did_you_mean

MARKS = {  # the longer first: the mark of UTF-32 LE starts with that of UTF-16 LE
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
EVIDENCE = 1 << 20
"""Bytes of blocks with more than ASCII in them that are looked at before an encoding is chosen."""
SEARCHED = 64 << 20
"""Bytes searched for such blocks; a file that is ASCII so far is read as UTF-8."""
LONGEST_LINE = 64 << 20
"""Characters: what has no line end for so long is not a file of rows; of raw text it is handed over in parts."""

NO_TEXT = "bytes that are no text in this encoding"
UNDECODABLE = re.compile("[\ud800-\udfff]")
"""Lone surrogates: what stands for bytes that are no text."""

# The hundred most frequent characters of modern Chinese make 20 % of headlines and 40 % of prose, and next to nothing
# of Korean, Japanese or other text that is valid GB18030 by accident.
FREQUENT = frozenset(
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然"
    "作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从"
)


@dataclass(frozen=True, slots=True)
class Lines:
    """Consecutive physical lines with their ends (LF, CRLF or CR); the last of the file may have none."""

    lines: list[str]
    damaged: bool
    """Some line has bytes that are no text, standing as lone surrogates."""
    quoted: bool
    """Some line has a double quote."""
    unended: bool = False
    """The last line goes on in the next block."""


def detect(blocks: Iterable[bytes], source: str) -> str:
    """The encoding of a file: UTF-8, UTF-16 (also without mark) or GB18030. DataError when it is none of them."""
    evidence, offset = _evidence(blocks)
    for mark, name in MARKS.items():
        if offset == 0 and evidence.startswith(mark):
            return name
    if b"\0" in evidence and (wide := _utf16_without_mark(evidence)):
        return wide
    error = _strict_error(evidence, "utf-8")
    if error is None:
        return "utf-8"
    bad, good, total = _utf8_lines(evidence)
    if bad * 4 <= good:
        return "utf-8"
    if b"\0" not in evidence and _is_chinese(evidence):
        return "gb18030"
    if b"\0" not in evidence and bad * 10 <= total:
        return "utf-8"
    raise DataError(_unknown_encoding(source, evidence, offset, error))


def check(name: str) -> str:
    """The name as Python spells it; raises DataError for what is no text encoding."""
    try:
        info = codecs.lookup(name)
    except LookupError:
        known = ["utf-8", "utf-16", "gb18030", "latin-1", "cp1252", "big5", "shift_jis", "euc_kr"]
        hint = did_you_mean(name, known)
        raise DataError(f"data.encoding: no encoding is called '{name}'.{hint} Known: {', '.join(known)} ...") from None
    if not info._is_text_encoding:
        raise DataError(f"data.encoding: '{name}' is no text encoding. Name one as utf-8, gb18030 or latin-1")
    return info.name


def decode(blocks: Iterable[bytes], encoding: str, source: str, of_rows: bool = True) -> Iterator[Lines]:
    """The lines of a file. Bytes that are no text become lone surrogates U+DC00 + byte; their block is `damaged`.
    Lines longer than any row are refused `of_rows`, else cut."""
    codecs.register_error("bigmodel.mark", _mark)
    rest: list[str] = []  # the line that has not ended yet
    length, quoted, damaged = 0, False, False
    for text, bad in _texts(blocks, encoding):
        if not text:
            continue
        quoted, damaged = quoted or '"' in text, damaged or bad
        cut = max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1  # a CR at the end may be half of a CRLF
        unended = not cut and not (rest and rest[-1].endswith("\r"))
        if unended and length + len(text) <= LONGEST_LINE:
            rest.append(text)
            length += len(text)
            continue
        if unended and of_rows:
            raise DataError(f"{source}: a line of more than {LONGEST_LINE >> 20} Mi characters. Is it a file of rows?")
        joined = "".join(rest) + text
        if unended:
            cut = (len(joined) - 1) // LONGEST_LINE * LONGEST_LINE
            yield Lines([joined[:cut]], damaged, quoted, unended)
        else:
            cut = max(joined.rfind("\n"), joined.rfind("\r", 0, -1)) + 1
            yield Lines(list(io.StringIO(joined[:cut], newline="")), damaged, quoted)
        rest = [joined[cut:]]
        length, quoted, damaged = len(rest[0]), '"' in rest[0], damaged and bool(UNDECODABLE.search(rest[0]))
    if tail := "".join(rest):
        yield Lines(list(io.StringIO(tail, newline="")), damaged, quoted)


def _texts(blocks: Iterable[bytes], encoding: str) -> Iterator[tuple[str, bool]]:
    """Decoded blocks without the mark at the start of the file, and whether they have undecodable bytes."""
    strict = codecs.getincrementaldecoder(encoding)("strict")
    lenient = codecs.getincrementaldecoder(encoding)("bigmodel.mark")
    first = True
    for block in _and_end(blocks):
        state = strict.getstate()
        try:
            text, bad = strict.decode(block, not block), False
        except UnicodeError:
            lenient.setstate(state)
            text, bad = lenient.decode(block, not block), True
            strict.setstate(lenient.getstate())
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        yield text, bad


def _and_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    yield from blocks
    yield b""


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), "only decoders are given this handler"
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


def _evidence(blocks: Iterable[bytes]) -> tuple[bytes, int]:
    """The first blocks with more than plain ASCII in them, and where they start in the file."""
    found: list[bytes] = []
    searched = size = offset = 0
    for block in blocks:
        if found or not block.isascii() or b"\0" in block:
            offset = offset if found else searched
            found.append(block)
            size += len(block)
        searched += len(block)
        if size >= EVIDENCE or searched >= SEARCHED:
            break
    return b"".join(found), offset


def _strict_error(data: bytes, encoding: str) -> UnicodeDecodeError | None:
    """What keeps these bytes, which may be cut in the middle of a character, from being text."""
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(data, final=len(data) < EVIDENCE)
    except UnicodeDecodeError as error:
        return error
    return None


def _utf8_lines(data: bytes) -> tuple[int, int, int]:
    """Lines that are not UTF-8, lines with more than ASCII that are, and all lines."""
    lines = data.replace(b"\r", b"\n").split(b"\n")
    lines = lines[:-1] if len(data) >= EVIDENCE else lines  # the last may be cut
    wide = [line for line in lines if not line.isascii()]
    bad = sum(_strict_error(line, "utf-8") is not None for line in wide)
    return bad, len(wide) - bad, sum(map(bool, lines))


def _utf16_without_mark(data: bytes) -> str | None:
    """UTF-16 is known by the zero bytes of its line ends, digits and Latin letters: most stand on one side. Read the
    right way round it has hardly a control or unassigned character."""
    even, odd = data[::2].count(0), data[1::2].count(0)
    name = "utf-16-le" if odd > even else "utf-16-be"
    if (len(data) % 2 and len(data) < EVIDENCE) or _strict_error(data, name) is not None:
        return None
    text = data[: len(data) // 2 * 2].decode(name, "ignore")
    strange = sum(unicodedata.category(c)[0] == "C" and c not in "\t\r\n" for c in text)  # controls, unassigned
    return name if strange * 100 <= len(text) else None


def _is_chinese(data: bytes) -> bool:
    """GB18030, and not by accident: nearly any two high bytes are some character of it."""
    if _strict_error(data, "gb18030") is not None:
        return False
    text = data.decode("gb18030", "ignore")
    wide = [c for c in text if not c.isascii()]
    common = sum(bool(c.encode("gb2312", "ignore")) for c in wide)
    kana = sum("\u3040" <= c <= "\u30ff" for c in wide)
    if common * 2 < len(wide) or kana * 10 > len(wide):
        return False
    hanzi = [c for c in wide if "\u4e00" <= c <= "\u9fff"]
    return sum(c in FREQUENT for c in hanzi) * 20 >= len(hanzi) > 0


def _unknown_encoding(source: str, evidence: bytes, offset: int, error: UnicodeDecodeError) -> str:
    if evidence.count(0) * 50 > len(evidence):
        where = f"byte {evidence[error.start]:#04x} at offset {offset + error.start}"
        return f"{source}: is not text ({where}, and many zero bytes)"
    line = "" if offset else f", line {evidence[: error.start].count(10) + 1}"
    return (
        f"{source}: neither UTF-8, UTF-16 nor GB18030: byte {evidence[error.start]:#04x} at offset "
        f"{offset + error.start}{line}. Name its encoding, for example data.encoding=latin-1 or data.encoding=cp1252"
    )
