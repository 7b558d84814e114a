"""What surrounds the pixels in an encoded file: left out before a decoder sees it, and found incomplete.

Comments, profiles and text of any size are no reason to lose a picture, so PNG, JPEG and GIF files are taken apart into chunks, segments or
blocks, and what does not bear on the pixels is dropped. Everything is found by jumping over lengths; nothing is decompressed but the text
chunk that may hold an orientation, within a bound.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_PNG_TEXT = {b"tEXt": b"Raw profile type exif\0", b"zTXt": b"Raw profile type exif\0", b"iTXt": b"XML:com.adobe.xmp\0"}
_MOST_TEXT = 2**18  # bytes, written out, of a text chunk that is looked at for an orientation
_DEFLATES = 1032  # bytes that one byte of a deflate stream can stand for, at most (zlib's documentation)

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # not a stuffed byte, not a restart
_KEPT_SEGMENTS = {  # application segments that bear on the pixels; an empty prefix keeps all of the kind
    0xE0: (b"",),
    0xE1: (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"),
    0xEE: (b"Adobe",),
}
_LEAST_SEGMENT = {0xE0: 16, 0xEE: 14}  # bytes: shorter ones say nothing, and the decoder would read behind them
_LEAST_SHARE = 1000  # a JPEG that is cut has a byte for so many pixels: fewer hold less than about 1% of a picture


@dataclass(frozen=True)
class Contents:
    """An encoded file without what does not bear on its pixels."""

    data: bytes
    damage: str | None = None  # what is wrong with a picture that can be shown all the same
    lacking: bool = False  # the pixels that the header announces cannot be in there
    rest: bytes = b""  # what follows the picture in a JPEG file


def contents(data: bytes, *, frames: bool = False) -> Contents:
    """The parts of a PNG, JPEG or GIF file that bear on its pixels; other formats, and what cannot be taken apart, as they are.

    With ``frames``, what makes a PNG an animation or a JPEG several pictures stays, and damage there counts.
    """
    if data.startswith(_SIGNATURE):
        return _png(data, frames)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data, frames)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith(b"RIFF") and data[8:16] in (b"WEBPVP8 ", b"WEBPVP8L"):
        return _webp(data)
    return Contents(data)


def _png(data: bytes, frames: bool) -> Contents:
    """As browsers read it: an ancillary chunk with a wrong checksum is left out, and pixels with one are shown."""
    chunks: list[tuple[bytes, bytes]] = []
    place, damage, wrong = len(_SIGNATURE), "the PNG data end early", set[bytes]()
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body, checksum = data[place + 8 : place + 8 + length], data[place + 8 + length : place + 12 + length]
        is_critical = kind[0] & 32 == 0
        if not kind.isalpha():
            break
        sound = checksum == _checksum(kind, body)
        if not sound and len(checksum) == 4:
            wrong.add(kind)
            if kind != b"IDAT" and is_critical:
                return Contents(data)  # the header or the palette: the decoder refuses it
        if kind == b"IEND":
            damage = ""
            break
        if is_critical or kind in _PNG_ANIMATION or (sound and _kept(kind, body)):
            chunks.append((kind, body))
        place += 12 + length
    if not frames or wrong & _PNG_ANIMATION:  # the still picture is left
        chunks = [chunk for chunk in chunks if chunk[0] not in _PNG_ANIMATION]
    if not damage and wrong & {b"IDAT", b"tRNS", *_PNG_ANIMATION}:
        damage = "a checksum in the PNG data is wrong"
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) < 13:
        return Contents(data)
    first, *others = chunks
    colour = first[1][9]
    others = [one for one in others if one[0] != b"tRNS" or colour not in (0, 2) or len(one[1]) == (2, 0, 6)[colour]]
    # The orientation is known before the pixels.
    others.sort(key=lambda chunk: chunk[0] not in _PNG_TEXT and chunk[0] != b"eXIf")
    parts = [_SIGNATURE]
    for kind, body in (first, *others, (b"IEND", b"")):
        parts += struct.pack(">I", len(body)), kind, body, _checksum(kind, body)
    return Contents(b"".join(parts), damage or None, _too_little(chunks))


def _checksum(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _kept(kind: bytes, body: bytes) -> bool:
    """Whether an ancillary chunk bears on how the picture is shown."""
    if kind in (b"tRNS", b"eXIf"):
        return True
    if kind not in _PNG_TEXT or not body.startswith(_PNG_TEXT[kind]) or len(body) > _MOST_TEXT:
        return False
    if kind == b"tEXt" or (kind == b"iTXt" and body[18:19] == b"\0"):
        return True
    packed = body.partition(b"\0")[2][1:] if kind == b"zTXt" else body[20:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        inflate = zlib.decompressobj()
        inflate.decompress(packed, _MOST_TEXT)
    except zlib.error:
        return False
    return not inflate.unconsumed_tail


def _too_little(chunks: list[tuple[bytes, bytes]]) -> bool:
    """Whether the pixels announced cannot be in there, so that no memory need be taken for them."""
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[0][1])
    bits = width * height * depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    return bool(bits // 8 > _DEFLATES * sum(len(body) for kind, body in chunks if kind == b"IDAT"))


def _jpeg(data: bytes, frames: bool) -> Contents:
    """Segments until the end marker; a file that ends before it gets one, as browsers do."""
    parts, place, copied = [], 2, 0
    end, pixels, scan, arithmetic = len(data), 0, 0, False
    while True:
        found = _MARKER.search(data, place)
        if found is None:
            break
        code, start, body = found[1][0], found.start(), found.end()
        if code == 0xD9:
            end = start
            if not arithmetic and (end - scan) * _LEAST_SHARE < pixels:
                break
            parts.append(data[copied:body])
            whole = b"".join(parts) if copied else data[:body]
            return Contents(whole + data[body:] if frames else whole, rest=data[body:])
        if code in (0x01, 0xD8):
            place = body
            continue
        length = int.from_bytes(data[body : body + 2], "big")
        if length < 2 or body + length > len(data):
            end = start
            break
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and length >= 8:
            height, width = struct.unpack_from(">HH", data, body + 3)
            pixels, arithmetic = width * height, code > 0xC8
        place = body + length
        if code == 0xDA:
            scan = scan or place
            # As nearly all do; looking for the marker takes as long as decoding.
            if not frames and data.endswith(b"\xff\xd9"):
                place = len(data) - 2
        if not scan and (0xE0 <= code <= 0xEF or code == 0xFE):
            kept = _KEPT_SEGMENTS.get(code, ()) if length >= _LEAST_SEGMENT.get(code, 0) else ()
            if not data.startswith(kept + ((b"MPF\0",) if frames else ()), body + 2):
                parts.append(data[copied:start])
                copied = place
                if frames:  # a comment of the same length, for the places of other pictures are counted from here
                    parts.append(b"\xff\xfe" + data[body:place])
    if not scan or (end - scan) * _LEAST_SHARE < pixels:
        return Contents(data, lacking=True)
    parts += data[copied:end], b"\xff\xd9"
    return Contents(b"".join(parts), "the JPEG data end early")


def _webp(data: bytes) -> Contents:
    """A still picture; a wrong length of the whole file is mended, for the picture has its own."""
    chunk = int.from_bytes(data[16:20], "little")
    if int.from_bytes(data[4:8], "little") + 8 <= len(data) or 20 + chunk > len(data):
        return Contents(data)
    return Contents(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])


def _gif(data: bytes) -> Contents:
    """Blocks until the trailer, without comments and what programs left for themselves."""
    if len(data) < 13:
        return Contents(data)
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    parts, copied, pictures = [], 0, 0
    while place < len(data) and data[place] in (0x21, 0x2C, 0):
        start, dropped = place, data[place] == 0x21 and data[place + 1 : place + 2] != b"\xf9"
        if data[place] == 0:  # an empty block too many
            place += 1
            continue
        if data[place] == 0x21:
            place += 2
        else:
            packed = data[place + 9] if place + 9 < len(data) else 0
            place += 11 + (3 << (packed & 7) + 1 if packed & 0x80 else 0)
            pictures += 1
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
        if dropped:
            parts.append(data[copied:start])
            copied = place
    whole = place < len(data) and data[place] == 0x3B
    if not pictures:
        return Contents(data)
    parts.append(data[copied : place + 1 if whole else len(data)])
    return Contents(b"".join(parts), None if whole else "the GIF data end early")
