"""Damage to the content of a file: of its bytes, of its JSON, of what an archive holds."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import suppress
from random import Random
from typing import Any

SPECIAL = (0, 1, 0x22, 0x2C, 0x2D, 0x30, 0x39, 0x5B, 0x7B, 0x7D, 0x7F, 0x80, 0xFF)
ODD: tuple[Any, ...] = (None, True, -1, 0, 1, 2**31, 2**63, 2**200, -0.5, 1e308, "", "x", "nan",
       "inf", "\x1b[2J", [], {}, [[]], {"a": 1}, [None] * 3, [1e400], "a" * 300)  # fmt: skip


def damaged(content: bytes, random: Random) -> bytes:
    """Damage it in one of the ways that its kind has, now and then in two."""
    for _ in range(random.choice((1, 1, 1, 2))):
        ways = [damaged_bytes]
        if content[:2] == b"PK":
            ways += [damaged_archive] * 3
        elif content[8:10] == b'{"':
            ways += [damaged_tensors] * 3
        elif content.lstrip()[:1] == b"{":
            ways += [damaged_lines] * 3
        content = random.choice(ways)(content, random)
    return content


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """Change, insert, remove, repeat or cut off some bytes, mostly near the start."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = int(len(data) * random.random() ** random.choice((1, 4)))
        size = random.choice((1, 1, 2, 8, 64))
        kind = random.randrange(6)
        if kind == 0:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at] = random.choice(SPECIAL)
        elif kind == 2:
            data[at:at] = bytes(random.choice(SPECIAL) for _ in range(size))
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        else:
            del data[at:]
    return bytes(data)


def changed(value: Any, random: Random) -> Any:
    """Return plain JSON with something else at one of its places, or without that place."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.2:
        if isinstance(value, str) and random.random() < 0.5:
            with suppress(ValueError):  # JSON in JSON: what describes a file of tensors
                return json.dumps(changed(json.loads(value), random))
        return random.choice(ODD)
    found: Any = value.copy()
    key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
    if random.random() < 0.15:
        del found[key]
    elif isinstance(found, dict) and random.random() < 0.1:
        found[str(random.choice(ODD))] = found[key]
    else:
        found[key] = changed(value[key], random)
    return found


def damaged_lines(content: bytes, random: Random) -> bytes:
    """Change what one line of JSON holds, or move a line."""
    lines = content.splitlines(keepends=True)
    at = random.randrange(len(lines))
    if len(lines) > 2 and random.random() < 0.2:
        lines.insert(random.randrange(len(lines)), lines.pop(at))
        return b"".join(lines)
    with suppress(ValueError, RecursionError):
        lines[at] = json.dumps(changed(json.loads(lines[at]), random)).encode() + b"\n"
    return b"".join(lines)


def damaged_tensors(content: bytes, random: Random) -> bytes:
    """Change the header of a safetensors file, whose length stays right."""
    end = 8 + int.from_bytes(content[:8], "little")
    with suppress(ValueError, RecursionError):
        header = json.dumps(changed(json.loads(content[8:end]), random)).encode()
        return len(header).to_bytes(8, "little") + header + content[end:]
    return content


def damaged_archive(content: bytes, random: Random) -> bytes:
    """Damage one member, drop it or name it otherwise; sizes and checksums stay right."""
    to = io.BytesIO()
    with (
        suppress(Exception),
        zipfile.ZipFile(io.BytesIO(content)) as archive,
        zipfile.ZipFile(to, "w") as copy,
    ):
        names = archive.namelist()
        at = random.randrange(len(names))
        for place, name in enumerate(names):
            member = archive.read(name)
            if place != at:
                copy.writestr(name, member)
                continue
            kind = random.randrange(8)
            if kind == 0:
                continue
            renamed = damaged_bytes(name.encode(), random).decode(errors="replace") or "x"
            copy.writestr(
                renamed if kind == 1 else name,
                member if kind == 1 else damaged_bytes(member, random),
            )
    return to.getvalue() or content
