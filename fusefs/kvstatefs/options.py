"""What `-o` may say, for the command and for fstab, and who is told: the kernel, libfuse, or us."""

from __future__ import annotations

from typing import Final, NamedTuple

from kvstate.errors import InvalidConfig

__all__ = ["ADAPTERS", "MountOptions", "parse_options"]

ADAPTERS: Final = ("auto", "kernel", "fusepy")
_OPPOSITES: Final = (
    ("ro", "rw"),
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("noatime", "atime"),
    ("sync", "async"),
)
_SWITCHES: Final = frozenset(
    {"allow_other", "allow_root", "default_permissions", "nonempty", "dirsync", "debug"}
).union(*_OPPOSITES)
_WITH_VALUE: Final = frozenset({"fsname", "subtype", "umask", "uid", "gid", "max_readahead"})
_OURS: Final = {"adapter": ADAPTERS, "passthrough": ("auto", "off")}
_ONLY_FUSEPY: Final = ("allow_root", "umask", "uid", "gid")
"""What libfuse does itself, for each request: the kernel knows nothing of it."""
_OF_FSTAB: Final = frozenset({
    "auto",
    "noauto",
    "defaults",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "relatime",
    "norelatime",
    "strictatime",
    "nodiratime",
    "diratime",
    "lazytime",
    "nolazytime",
})  # fmt: skip
"""What `mount` and systemd read from fstab for themselves, and pass on all the same."""


class MountOptions(NamedTuple):
    """What a mount is asked to be."""

    read_only: bool
    for_libfuse: tuple[str, ...]
    adapter: str = "auto"
    passthrough: bool = True
    """Whether large content may be handed to the kernel."""
    words: frozenset[str] = frozenset()
    """The words without a value that hold: of opposites, the one that was said last."""
    source: str = "kvstatefs"
    subtype: str = "kvstatefs"
    max_readahead: int | None = None
    only_fusepy: str = ""
    """The first option that only the fusepy adapter can honour; empty if there is none."""

    @property
    def for_helper(self) -> tuple[str, ...]:
        """What fusermount3 is told: as libfuse would."""
        known = (word for word in sorted(self.words) if word not in {"debug", "nonempty"})
        return (f"fsname={_escaped(self.source)}", f"subtype={self.subtype}", *known)


def parse_options(texts: list[str], store: str) -> MountOptions:
    """Sort options out; `InvalidConfig` names one that is not known.

    The kernel checks modes and owners (`default_permissions`), whoever may enter the mount. What a
    mount has no business with, devices and set-user-id programs, it has only when asked for.
    """
    words = [word for text in texts for word in _split(text) if not _of_fstab(word)]
    for word in words:
        _check(word)
    holding = _holding([word for word in words if word in _SWITCHES])
    values = {
        name: value for name, given, value in (word.partition("=") for word in words) if given
    }
    chosen = [word for word in dict.fromkeys(words) if word.partition("=")[0] not in _OURS]
    source = values.get("fsname", "").replace("\\,", ",").replace("\\\\", "\\") or store
    if "fsname" not in values:
        chosen.append(f"fsname={_escaped(source)}")
    if "subtype" not in values:
        chosen.append("subtype=kvstatefs")
    if "default_permissions" not in holding:
        chosen.append("default_permissions")
    return MountOptions(
        read_only="ro" in holding,
        for_libfuse=tuple(chosen),
        adapter=values.get("adapter", "auto"),
        passthrough=values.get("passthrough") != "off",
        words=holding | {"default_permissions"},
        source=source,
        subtype=values.get("subtype", "kvstatefs"),
        max_readahead=_number("max_readahead", values.get("max_readahead")),
        only_fusepy=next((name for name in _ONLY_FUSEPY if name in holding | set(values)), ""),
    )


def _of_fstab(word: str) -> bool:
    return word.partition("=")[0] in _OF_FSTAB or word.startswith(("x-", "comment"))


def _check(word: str) -> None:
    name, given, value = word.partition("=")
    if name in _OURS:
        if value not in _OURS[name]:
            raise InvalidConfig(f"-o {word}", f"it may be {', '.join(_OURS[name])}")
    elif name in _WITH_VALUE:
        if not value:
            raise InvalidConfig(f"-o {word}", "it needs a value")
    elif name not in _SWITCHES or given:
        raise InvalidConfig(f"-o {word}", "there is no such option")


def _split(text: str) -> list[str]:
    """Split at commas, but for those that a backslash escapes."""
    words, word, escaped = [], "", False
    for character in text:
        if character == "," and not escaped:
            words.append(word)
            word = ""
        else:
            word += character
        escaped = character == "\\" and not escaped
    return [each for each in (*words, word) if each]


def _holding(words: list[str]) -> frozenset[str]:
    holding = set(words) | {"nosuid", "nodev"}
    for pair in _OPPOSITES:
        said = [word for word in words if word in pair]
        if said:
            holding -= {*pair}
            holding.add(said[-1])
    return frozenset(holding)


def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise InvalidConfig(f"-o {name}={text}", "it is a number of bytes")
    return int(text)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")
