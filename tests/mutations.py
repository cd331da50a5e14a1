"""Changes files at random, by the rules of their formats, to test what reads them."""

import io
import json
import os
import pathlib
import pickletools
import random
import shutil
import struct
import zipfile
from typing import Any

_LONG = 200_000
# Numbers near the ends of types, and beside what is expected.
_NUMBERS = (
    *(0, -1, 1, 2, 3, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**53),
    *(2**63 - 1, 2**63, 2**64 - 1, 10**30, 1e308, -0.0, 1e-320, 0.5),
    *(float("nan"), float("inf"), -float("inf")),
)
_TEXTS = (
    *("", "a", "..", "/dev/zero", "../../x", "float64", "O", "None", "a" * _LONG),
    *("\x1b[31m\r\nline", "\u202eright\u2066", "\ud800", "\0", "<b>*x*</b>|"),
)
# Stand for texts that `json.dumps` cannot write.
_MARKS = {
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@maps@": '{"a":' * 1_000 + "1" + "}" * 1_000,
    "@digits@": "9" * 10_000,
    "@many@": "[" + "0," * _LONG + "0]",
    "@open@": "[" * 1_000_000,
}
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)


def mutate(folder: pathlib.Path, rng: random.Random, which: str = "*") -> str:
    """Changes one file of a folder, or of its sub-folders, and returns how.

    Args:
      folder: the folder.
      rng: decides all.
      which: the files that may be changed.
    """
    files = sorted(path for path in folder.rglob(which) if path.is_file())
    path = rng.choice(files)
    name = str(path.relative_to(folder))
    if rng.random() < 0.04:
        return f"{name}: {_replace(path, rng)}"
    content, how = path.read_bytes(), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind, content = _changed(content, path.suffix, rng)
        how.append(kind)
    path.write_bytes(content)
    return f"{name}: {', '.join(how)}"


def _replace(path: pathlib.Path, rng: random.Random) -> str:
    """Puts something else in the place of a file."""
    how = rng.choice(("nothing", "folder", "device", "pipe", "loop", "empty", "denied"))
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path)
    elif how in ("empty", "denied"):
        path.touch(0o000 if how == "denied" else 0o644)
    return how


def _changed(content: bytes, suffix: str, rng: random.Random) -> tuple[str, bytes]:
    """Returns how a content was changed, and the result."""
    try:
        if suffix == ".json" and rng.random() < 0.8:
            return "json", _of_json(content, rng)
        if suffix == ".jsonl" and rng.random() < 0.8:
            lines = content.split(b"\n")
            index = rng.randrange(max(len(lines) - 1, 1))
            lines[index] = _of_json(lines[index], rng)
            return "jsonl", b"\n".join(lines)
        if content[:2] == b"PK" and rng.random() < 0.6:
            return "zip", _of_zip(content, rng)
        if suffix == ".safetensors" and rng.random() < 0.5:
            return "header", _of_safetensors(content, rng)
        if content[:6] == b"\x93NUMPY" and rng.random() < 0.5:
            return "npy", _of_npy(content, rng)
        if content[:1] == b"\x80" and rng.random() < 0.7:
            return "pickle", _of_pickle(content, rng)
    except Exception:  # of a content that has been changed before
        pass
    return _of_bytes(content, rng)


def _of_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    data, size = bytearray(content), len(content)
    # Headers are at the beginning or the end.
    at = rng.choice(
        (rng.randrange(size + 1), rng.randrange(min(size, 300) + 1), max(size - 60, 0))
    )
    length = min(rng.choice((1, 2, 4, 8, 16, 100, 5000)), size - at)
    how = rng.choice(
        "flip byte zeros ones random delete repeat cut more integer swap bomb".split()
    )
    if how == "flip" and at < size:
        data[at] ^= 1 << rng.randrange(8)
    elif how == "byte" and at < size:
        data[at] = rng.randrange(256)
    elif how in ("zeros", "ones"):
        data[at : at + length] = (b"\0" if how == "zeros" else b"\xff") * length
    elif how == "random":
        data[at : at + length] = rng.randbytes(length)
    elif how == "delete":
        del data[at : at + length]
    elif how == "repeat":
        data[at:at] = data[at : at + length] * rng.choice((1, 10, 1000))
    elif how == "cut":
        del data[at:]
    elif how == "more":
        data += rng.randbytes(rng.choice((1, 4, 1000)))
    elif how == "integer":
        form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        most = 256 ** struct.calcsize(form)
        packed = struct.pack(form, rng.choice(_INTEGERS) % most)
        data[at : at + len(packed)] = packed
    elif how == "swap":
        other = rng.randrange(size + 1)
        data[at : at + length], data[other : other + length] = (
            data[other : other + length],
            data[at : at + length],
        )
    elif how == "bomb":  # such as nested maps of msgpack, or operations of a pickle
        part = rng.choice(
            (b"\x81\xa1a", b"]", b"}", b"(", b"\xdd\xff\xff\xff\xff", b"[")
        )
        data[at:at] = part * rng.choice((100, 10_000, 1_000_000))
    return how, bytes(data)


def _of_json(content: bytes, rng: random.Random) -> bytes:
    tree = {"": json.loads(content)}
    holder, key = rng.choice(list(_places(tree)))
    value = holder[key]
    how = rng.randrange(8)
    if how == 0 and isinstance(value, dict | list) and value:
        each = rng.choice(
            sorted(value) if isinstance(value, dict) else range(len(value))
        )
        del value[each]
    elif how == 1 and isinstance(value, dict):
        value[rng.choice(_TEXTS)] = rng.choice(_NUMBERS)
    elif how == 2 and isinstance(value, list) and value:
        value *= rng.choice((2, 1000))
    elif how == 3 and isinstance(value, int | float):
        holder[key] = rng.choice(
            (-value, value * 10**6, value + 0.5, str(value), [value])
        )
    else:
        holder[key] = rng.choice(
            (
                *(None, True, False, [], {}, [[]], {"a": {}}, *_MARKS),
                *(rng.choice(_NUMBERS), rng.choice(_NUMBERS), rng.choice(_TEXTS)),
            )
        )
    text = json.dumps(tree[""])
    for mark, meant in _MARKS.items():
        text = text.replace(f'"{mark}"', meant)
    return text.encode()


def _places(tree: Any) -> Any:
    """Yields every place of a tree, as what holds it and its key."""
    keys = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(keys)[:1000]:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _of_zip(content: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    how = rng.choice("content content content compress name double many order".split())
    index = rng.randrange(len(parts))
    name, part = parts[index]
    kind = zipfile.ZIP_STORED
    if how == "content":
        parts[index] = name, _changed(part, pathlib.PurePath(name).suffix, rng)[1]
    elif how == "compress":
        kind = zipfile.ZIP_DEFLATED
        parts[index] = name, part + bytes(rng.choice((0, 10**6, 2 * 10**7)))
    elif how == "name":
        parts[index] = rng.choice(_TEXTS[1:8]), part
    elif how == "double":
        parts.append((f"{name}2", part))
    elif how == "many":
        parts += [(f"{name}{i}", b"") for i in range(2000)]
    else:
        rng.shuffle(parts)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, part in parts:
            archive.writestr(name, part)
    return target.getvalue()


def _of_safetensors(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = _of_json(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _of_npy(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<H", content[8:10])
    header = content[10 : 10 + length].decode("latin1")
    begin, end = header.index("(") + 1, header.index(")")
    shape = rng.choice(
        (
            "",
            "0,",
            "-1,",
            f"{2**40},",
            "1, " * 100,
            "2, 3",
            f"{10**30},",
            "True,",
            "1.5,",
        )
    )
    dtype = rng.choice(
        ("<f4", "<f8", "|O", "|V1000", "<U9", "<c16", "<i8", "|u1", "<M8")
    )
    if rng.random() < 0.5:
        header = f"{header[:begin]}{shape}{header[end:]}"
    else:
        begin = header.index("descr") + 9
        header = f"{header[:begin]}{dtype}{header[header.index(chr(39), begin) :]}"
    made = header.rstrip().ljust(length - 1) + "\n"
    return (
        content[:8]
        + struct.pack("<H", len(made))
        + made.encode()
        + content[10 + length :]
    )


def _of_pickle(content: bytes, rng: random.Random) -> bytes:
    starts = [at for _, _, at in pickletools.genops(content)]
    parts = [
        content[begin:end]
        for begin, end in zip(starts, [*starts[1:], None], strict=True)
    ]
    index, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    how = rng.choice("delete double repeat swap insert other".split())
    if how == "delete":
        del parts[index]
    elif how == "double":
        parts.insert(index, parts[other])
    elif how == "repeat":
        parts[index:index] = parts[index:other] * rng.choice((1, 100, 10_000))
    elif how == "swap":
        parts[index], parts[other] = parts[other], parts[index]
    elif how == "insert":
        parts.insert(index, rng.choice(_OPERATIONS))
    else:
        parts[index] = rng.choice(_OPERATIONS)
    return b"".join(parts)[: 4 * 2**20]


_OPERATIONS = (
    *(
        b"}",
        b"]",
        b")",
        b"(",
        b"t",
        b"u",
        b"s",
        b"e",
        b"a",
        b"R",
        b"b",
        b"Q",
        b"0",
        b"2",
    ),
    *(
        b"N",
        b"\x88",
        b"\x94",
        b"\x93",
        b"\x81",
        b"\x85",
        b"\x86",
        b"\x87",
        b"h\0",
        b"q\0",
    ),
    *(b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"J\xff\xff\xff\xff", b"K\xff", b"."),
    b"\x8a\xff" + b"\x7f" * 255,
    b"G\x7f\xf0" + bytes(6),
    b"X" + struct.pack("<I", 10**5) + b"a" * 10**5,
    *(b"cos\nsystem\n", b"ctorch\nSize\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n"),
    b"ctorch._utils\n_rebuild_tensor_v2\n",
)


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder to a place where there may be another one."""
    remove(target)
    shutil.copytree(source, target, symlinks=True)


def remove(folder: pathlib.Path) -> None:
    """Removes a folder with whatever is in it."""
    shutil.rmtree(folder, ignore_errors=True)
