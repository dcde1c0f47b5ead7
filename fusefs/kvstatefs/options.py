"""What `-o` may say, for the command and for fstab: which options libfuse gets, which are ours."""

from __future__ import annotations

from typing import Final, NamedTuple

from kvstate.errors import InvalidConfig

__all__ = ["MountOptions", "parse_options"]

_FOR_LIBFUSE: Final = frozenset({
    "allow_other",
    "allow_root",
    "default_permissions",
    "nonempty",
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "atime",
    "sync",
    "async",
    "dirsync",
    "debug",
})  # fmt: skip
_WITH_VALUE: Final = frozenset({"fsname", "subtype", "umask", "uid", "gid", "max_readahead"})
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
})  # fmt: skip
"""What `mount` and systemd read from fstab for themselves, and pass on all the same."""


class MountOptions(NamedTuple):
    """What a mount is asked to be."""

    read_only: bool
    for_libfuse: tuple[str, ...]


def parse_options(texts: list[str], store: str) -> MountOptions:
    """Sort options out; `InvalidConfig` names one that is not known.

    The kernel checks modes and owners (`default_permissions`), whoever may enter the mount.
    """
    words = [word for text in texts for word in text.split(",") if word]
    names = {word.partition("=")[0] for word in words}
    chosen: list[str] = []
    for word in words:
        name, given, value = word.partition("=")
        if name in _OF_FSTAB or name.startswith(("x-", "comment")):
            continue
        if name in _WITH_VALUE:
            if not given or not value:
                raise InvalidConfig(f"-o {word}", "it needs a value")
        elif name not in _FOR_LIBFUSE or given:
            raise InvalidConfig(f"-o {word}", "there is no such option")
        if word not in chosen:
            chosen.append(word)
    if "fsname" not in names:
        chosen.append("fsname=" + store.replace("\\", "\\\\").replace(",", "\\,"))
    if "subtype" not in names:
        chosen.append("subtype=kvstatefs")
    if "default_permissions" not in names:
        chosen.append("default_permissions")
    return MountOptions("ro" in names and "rw" not in words[words.index("ro") :], tuple(chosen))
