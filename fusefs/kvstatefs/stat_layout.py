"""``struct stat`` as bytes, whatever the machine's layout of it is."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvstatefs.nodes import Attributes

__all__ = ["StatLayout"]

_BLOCK: Final = 4096
_SECTOR: Final = 512
_SECOND: Final = 1_000_000_000


class StatLayout:
    """A ``struct stat``, given as a ctypes structure, filled in one go."""

    _FIELDS: Final = (
        "st_ino",
        "st_mode",
        "st_nlink",
        "st_uid",
        "st_gid",
        "st_size",
        "st_blksize",
        "st_blocks",
        "st_atimespec",
        "st_mtimespec",
        "st_ctimespec",
    )

    def __init__(self, structure: type[ctypes.Structure]) -> None:
        """Learn where the fields are."""
        places = {}
        for name in self._FIELDS:
            field = getattr(structure, name)
            places[name] = (field.offset, field.size)
        parts, at = ["="], 0
        self.order: list[str] = []
        for name, (offset, size) in sorted(places.items(), key=lambda item: item[1]):
            parts.append(f"{offset - at}x")
            half = {4: "I", 8: "q", 16: "qq"}
            parts.append(half[size])
            self.order.append(name)
            at = offset + size
        self.size = ctypes.sizeof(structure)
        parts.append(f"{self.size - at}x")
        self._struct = struct.Struct("".join(parts))
        self._pack = self._struct.pack

    def pack(self, found: Attributes) -> bytes:
        """Give the bytes of a ``struct stat``."""
        values = {
            "st_ino": (found.inode,),
            "st_mode": (found.mode,),
            "st_nlink": (found.links,),
            "st_uid": (found.uid,),
            "st_gid": (found.gid,),
            "st_size": (found.size,),
            "st_blksize": (_BLOCK,),
            "st_blocks": (-(-found.size // _SECTOR),),
            "st_atimespec": divmod(found.accessed_ns, _SECOND),
            "st_mtimespec": divmod(found.modified_ns, _SECOND),
            "st_ctimespec": divmod(found.changed_ns, _SECOND),
        }
        flat: list[int] = []
        for name in self.order:
            flat += values[name]
        return self._pack(*flat)

    def pack_entry(self, inode: int, mode: int) -> bytes:
        """Give what a listing needs of a ``struct stat``."""
        flat: list[int] = []
        for name in self.order:
            value = {"st_ino": inode, "st_mode": mode}.get(name, 0)
            flat += (value, 0) if name.endswith("spec") else (value,)
        return self._pack(*flat)
