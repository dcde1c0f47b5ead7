r"""What may be a name: one place for every door.

A *segment* (tenant, workflow, each part of an artifact's own name) is 1 to 255 bytes of UTF-8 with
no ``/ \\ : * ? " < > |``, no control character, and is not ``.`` or ``..``. A *namespace* is the
same, but may hold colons. A *key* is any text without control characters whose *file name* (the key
with ``%``, ``/`` and the whole names ``.`` and ``..`` percent-encoded) has at most 255 bytes.

Everything here is pure; what is refused raises `InvalidName` with the rule that it breaks.
"""

from __future__ import annotations

import re
from typing import Final

from kvstate.errors import InvalidName

__all__ = [
    "NAME_BYTES_MAX",
    "PATH_BYTES_MAX",
    "artifact_path",
    "check_key",
    "check_namespace",
    "check_segment",
    "file_name_of_key",
    "key_of_file_name",
    "segments",
]

NAME_BYTES_MAX: Final = 255
PATH_BYTES_MAX: Final = 4095

_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029"
_RESERVED: Final = '/\\:*?"<>|'
_SEGMENT = re.compile(rf'[^{_CONTROL}/\\:*?"<>|]+')
_NAMESPACE = re.compile(rf'[^{_CONTROL}/\\*?"<>|]+')
_KEY = re.compile(rf"[^{_CONTROL}]+")
# What most paths are made of: 1 to 255 plain characters each, none that begins with a dot.
_PLAIN_PATH = re.compile(
    r"[A-Za-z0-9_@+=,~#-][A-Za-z0-9_@+=,~# .-]{0,254}"
    r"(?:/[A-Za-z0-9_@+=,~#-][A-Za-z0-9_@+=,~# .-]{0,254})*"
)
_PLAIN_KEY = re.compile(rf"[^{_CONTROL}%/.][^{_CONTROL}%/]{{0,62}}")  # 63 x 4 bytes: always fits


def _bytes_of(kind: str, name: object) -> bytes:
    if not isinstance(name, str):
        raise InvalidName(kind, name, f"it is {type(name).__name__}, not text")
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise InvalidName(kind, name, "it is not valid UTF-8") from None


def _check(kind: str, name: object, pattern: re.Pattern[str], reserved: str) -> bytes:
    data = _bytes_of(kind, name)
    assert isinstance(name, str)
    if not data:
        raise InvalidName(kind, name, "it is empty")
    if len(data) > NAME_BYTES_MAX:
        raise InvalidName(kind, name, f"it has {len(data)} bytes, {NAME_BYTES_MAX} are allowed")
    if name in {".", ".."}:
        raise InvalidName(kind, name, "it would leave its folder")
    if not pattern.fullmatch(name):
        raise InvalidName(kind, name, f"control characters and {reserved} are not allowed")
    return data


def check_segment(name: object, kind: str = "artifact") -> bytes:
    """Give a segment's bytes, or raise `InvalidName`."""
    return _check(kind, name, _SEGMENT, _RESERVED)


def check_namespace(name: object) -> bytes:
    """Give a namespace's bytes, or raise `InvalidName`."""
    return _check("namespace", name, _NAMESPACE, _RESERVED.replace(":", ""))


def check_key(key: object) -> bytes:
    """Give a key's bytes, or raise `InvalidName`."""
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise InvalidName("key", key, "it is not valid UTF-8") from None
    data = _bytes_of("key", key)
    assert isinstance(key, str)
    if not data:
        raise InvalidName("key", key, "it is empty")
    if not _KEY.fullmatch(key):
        raise InvalidName("key", key, "control characters are not allowed")
    size = len(file_name_of_key(key).encode())
    if size > NAME_BYTES_MAX:
        raise InvalidName(
            "key", key, f"its file name has {size} bytes, {NAME_BYTES_MAX} are allowed"
        )
    return data


def file_name_of_key(key: str) -> str:
    """Give the file name of a key: flat, exact, reversible."""
    if key in {".", ".."}:
        return key.replace(".", "%2E")
    return key.replace("%", "%25").replace("/", "%2F")


_ESCAPES: Final = {"25": "%", "2F": "/", "2E": "."}


def key_of_file_name(name: str) -> str:
    """Give the key that has this file name; `InvalidName` when no key has it."""
    first, *rest = name.split("%")
    parts = [first]
    for part in rest:
        escaped = _ESCAPES.get(part[:2])
        if escaped is None:
            raise InvalidName("key's file", name, "% must be written as %25")
        parts += escaped, part[2:]
    key = "".join(parts)
    if file_name_of_key(key) != name:
        raise InvalidName("key's file", name, f"the key {key!r} has another file name")
    check_key(key)
    return key


def segments(path: object, *, kind: str = "artifact") -> tuple[str, ...]:
    """Split ``a/b/c`` and check each segment; `InvalidName` for an empty one, too."""
    if not isinstance(path, str):
        raise InvalidName(kind, path, f"it is {type(path).__name__}, not text")
    if len(path) <= PATH_BYTES_MAX and _PLAIN_PATH.fullmatch(path):
        return tuple(path.split("/"))
    parts = tuple(path.split("/"))
    for part in parts:
        try:
            check_segment(part)
        except InvalidName as error:
            if len(parts) == 1:
                raise
            raise InvalidName(kind, path, f"in {part!r}: {error.facts[2]}") from None
    if len(path.encode()) > PATH_BYTES_MAX:
        raise InvalidName(kind, path[:60] + "...", f"it has more than {PATH_BYTES_MAX} bytes")
    return parts


def artifact_path(name: object) -> tuple[str, ...]:
    """Split ``tenant/workflow/artifact[/...]``; `InvalidName` below three parts."""
    parts = segments(name)
    if len(parts) < 3:
        raise InvalidName("artifact", name, "it needs the form tenant/workflow/artifact")
    return parts
