"""`.kvstate/meta/`: a twin of every tree, where each file says what is known of its own.

`.kvstate/meta/all/acme/weekly/report.md` is JSON about `all/acme/weekly/report.md`: the path is the
same, so that each can be had from the other. It has what `stat` and the extended attributes say,
for tools that cannot read these. Folders have the owners and modes of theirs, without writing.

Nodes: ``("meta", tree, name, ...)``.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Any, Final, Protocol

from kvstate.facts import artifact_facts, entry_facts, moment_text
from kvstate.jsonview import to_json
from kvstate.nodes import File
from kvstatefs.attributes import COMPUTED
from kvstatefs.computed import (
    FILE_MODE,
    FOLDER_MODE,
    ComputedHandle,
    ComputedView,
    check_length,
    check_reading,
    read_only_mode,
)
from kvstatefs.keys import Place
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import ROOT, STATE, Attributes, identity_of, inode_of, os_error, refuse, tag_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.store import Store
    from kvstatefs.keys import Keys
    from kvstatefs.nodes import Handle, Node

__all__ = ["META", "MetaView"]

META: Final = "meta"
_TREES: Final = ("all", "cold", "hot", "state", "warm")
_READ_BITS: Final = 0o444
_FOLDERS_KEPT: Final = 10_000


class Trees(Protocol):
    """The trees of which this is the twin: what is asked of `kvstatefs.tree.Tree`."""

    @property
    def version(self) -> Callable[[], int]:
        """Give what gives a number that changes with every change."""
        ...

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give what has this name in this folder."""
        ...

    def getattr(self, node: Node) -> Attributes:
        """Give a node's attributes."""
        ...

    def listing(self, node: Node) -> Listing:
        """Open a folder for listing."""
        ...

    def stored(self, node: Node) -> Attributes:
        """Give the attributes of what is stored; ENOENT if nothing is."""
        ...

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give a node's extended attributes, own and computed."""
        ...


class MetaView(ComputedView):
    """What is known of every file, as files."""

    def __init__(self, store: Store, tree: Trees, keys: Keys) -> None:
        self._tree = tree
        self._store = store
        self._keys = keys
        self._folders: tuple[int, dict[Node, Attributes]] = (-1, {})
        """Twins of folders that were found, until anything changes."""

    # Looking

    def _twin(self, node: Node) -> Attributes:
        """Give the attributes of what a node is the twin of; ENOENT when that is not there."""
        if not isinstance(node, tuple) or (len(node) > 1 and node[1] not in _TREES):
            raise os_error(errno.ENOENT)
        if len(node) == 1:
            return self._tree.getattr(ROOT)
        version = self._tree.version()
        known_version, known = self._folders
        if version != known_version or len(known) > _FOLDERS_KEPT:
            known = {}
            self._folders = (version, known)
        above = known.get(node[:-1])
        if above is None:
            above = self._twin(node[:-1])
            if not stat.S_ISDIR(above.mode):
                refuse(errno.ENOTDIR)
            if above.lasting:
                known[node[:-1]] = above
        return self._tree.lookup(above.node, node[-1])

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give the twin of what has this name in the folder whose twin this is."""
        check_length(name)
        above = parent if isinstance(parent, tuple) else ()
        return self.getattr((*above, name))

    def getattr(self, node: Node) -> Attributes:
        """Give a twin's attributes."""
        twin = self._twin(node)
        if stat.S_ISDIR(twin.mode):
            return self._of_folder(node, twin)
        return self._of_file(node, twin, len(self._text(node, twin)))

    @staticmethod
    def _of_folder(node: Node, twin: Attributes) -> Attributes:
        mode = FOLDER_MODE if node == (META,) else read_only_mode(twin.mode)
        return twin._replace(node=node, inode=inode_of(node), mode=mode, lasting=node == (META,))

    @staticmethod
    def _of_file(node: Node, twin: Attributes, size: int) -> Attributes:
        return Attributes(
            node,
            inode_of(node),
            stat.S_IFREG | twin.mode & _READ_BITS,
            size,
            twin.uid,
            twin.gid,
            twin.modified_ns,
            twin.modified_ns,
            twin.changed_ns,
            lasting=False,
        )

    def listing(self, node: Node) -> Listing:
        """Open a folder for listing."""
        twin = self._twin(node)
        if not stat.S_ISDIR(twin.mode):
            refuse(errno.ENOTDIR)
        names = node if isinstance(node, tuple) else ()
        if node == (META,):
            trees = [Listed(name, inode_of((META, name)), FOLDER_MODE) for name in _TREES]
            return Listing(lambda _: Page(trees, None))
        return _Mirrored(self._tree.listing(twin.node), names)

    # What a twin says

    def open(self, node: Node, flags: int) -> Handle:
        """Open a twin for reading."""
        twin = self._twin(node)
        if stat.S_ISDIR(twin.mode):
            refuse(errno.EISDIR)
        check_reading(flags)
        text = self._text(node, twin)
        return ComputedHandle(text, self._of_file(node, twin, len(text)))

    def _text(self, node: Node, twin: Attributes) -> bytes:
        assert isinstance(node, tuple)
        facts = self._of_key(twin) if tag_of(twin.node) == STATE else self._of_artifact(twin)
        shown = {
            "path": "/".join(node[1:]),
            **facts,
            "inode": twin.inode,
            "mode": f"{stat.S_IMODE(twin.mode):04o}",
            "uid": twin.uid,
            "gid": twin.gid,
        }
        return to_json(shown, indent=2).encode("utf-8", "replace") + b"\n"

    def _of_key(self, twin: Attributes) -> dict[str, Any]:
        assert isinstance(twin.node, tuple)
        place = Place(*twin.node[1:])
        known = {"kind": "key", "namespace": place.namespace, "key": place.key, "size": twin.size}
        entry = self._keys.entry(place)
        if entry is None:
            return {**known, "stored": False}
        facts = entry_facts(entry)
        del facts["value"]  # that is what the key's own file is for
        return {**known, "stored": True, "type": type(entry.value).__name__, **facts}

    def _of_artifact(self, twin: Attributes) -> dict[str, Any]:
        known = {"kind": "link" if stat.S_ISLNK(twin.mode) else "artifact"}
        try:
            stored = self._tree.stored(twin.node)
        except FileNotFoundError:
            own = self._tree.xattrs(twin.node)
            return {**known, "stored": False, "size": twin.size, "xattrs": _shown(own)}
        file = self._store.catalog.node(identity_of(stored.node))
        if not isinstance(file, File):
            raise os_error(errno.ENOENT)
        artifact = self._store.artifacts.stat(self._store.catalog.path(file.id))
        changed = moment_text(file.changed_ns)
        facts = {**artifact_facts(artifact), "changed_at": changed}
        return {**known, "stored": True, **facts, "xattrs": _shown(file.xattrs)}


def _shown(xattrs: dict[str, bytes]) -> dict[str, Any]:
    """Give a file's own attributes, as text where they are text."""
    own = {name: value for name, value in xattrs.items() if not name.startswith(COMPUTED)}
    return {name: _text_or_bytes(own[name]) for name in sorted(own)}


def _text_or_bytes(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


class _Mirrored(Listing):
    """The listing of a folder, for its twin."""

    def __init__(self, listing: Listing, names: tuple[str, ...]) -> None:
        self._listing = listing
        self._names = names

    def entries(self, offset: int = 0) -> Iterator[tuple[int, Listed]]:
        """Give the entries from an offset on, each with the offset after it."""
        for after, listed in self._listing.entries(offset):
            mode = FOLDER_MODE if stat.S_ISDIR(listed.mode) else FILE_MODE
            yield after, Listed(listed.name, inode_of((*self._names, listed.name)), mode)
