"""The kernel's nodes: which number it knows for what, how often it looked it up, under which names.

One node shows one content. A file whose content is replaced gets a new node for the new content,
with the same inode number for users: so no page that the kernel keeps is ever of other bytes than
the node's, and who has the old content open keeps it. Content that only grew keeps its node, since
what was there is there still. While a file is being written it has one node for its writers.

Folders remember what was said of the names in them: a node, or that there is none. `feed.py`
compares that with what the store says by now. Everything here is in memory; what a successor of
this process has to know goes to the ledger as well. Who uses several of these methods for one
decision holds `lock`.
"""

from __future__ import annotations

import errno
import itertools
import struct
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from kvstatefs.kernel.known import Known
from kvstatefs.kernel.wire import attributes_bytes
from kvstatefs.nodes import Attributes, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvstatefs.kernel.ledger import Ledger
    from kvstatefs.nodes import Node

__all__ = ["ABSENT", "Table"]

ABSENT: Final = None
"""What a folder remembers of a name when it was said that there is none."""
ROOT_NUMBER: Final = 1
_ABSENT_MAX: Final = 65_536
_FACTS = struct.Struct("=QB")
_PACKED_BYTES: Final = 88
_NAMED, _DETACHED = 1, 2


class Table:
    """All nodes that the kernel knows, by their number and by what they are."""

    def __init__(
        self, ledger: Ledger, root: Node, notify_absent: Callable[[int, str], None]
    ) -> None:
        """Begin with the root; ``notify_absent`` takes back that a name is absent."""
        self.lock = threading.RLock()
        self._ledger = ledger
        self._by_number: dict[int, Known] = {}
        self._of_node: dict[Node, list[Known]] = {}
        self._absent: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._notify_absent = notify_absent
        self._numbers = itertools.count(ROOT_NUMBER + 1)
        self.root = self._add(Known(ROOT_NUMBER, root, None, 0))
        self.root.lookups = 1
        self.find = self._by_number.get
        self.forgotten: Callable[[Known], None] = lambda _: None
        """Called with a node that the kernel has forgotten for good."""

    def __len__(self) -> int:
        return len(self._by_number)

    def get(self, number: int) -> Known:
        """Give a node; ESTALE for one that the kernel has forgotten, or never knew."""
        known = self.find(number)
        if known is None:
            refuse(errno.ESTALE)
        return known

    def of(self, node: Node) -> list[Known]:
        """Give the nodes that show contents of this."""
        return self._of_node.get(node, [])

    def all(self) -> list[Known]:
        """Give all nodes as of now."""
        with self.lock:
            return list(self._by_number.values())

    def _add(self, known: Known) -> Known:
        self._by_number[known.number] = known
        self._of_node.setdefault(known.node, []).append(known)
        return known

    # Telling

    def take(self, found: Attributes, *, count: int = 1, old: bool = False) -> Known:
        """Give the node for what was found, which the kernel is being told of once more.

        ``old`` allows one that no name leads to any more, but that shows this very content.
        """
        with self.lock:
            known, changed = self._take(found, old=old)
            self._looked_up(known, count, changed=changed)
            return known

    def tell(self, found: Attributes, parent: Known, name: str) -> Known:
        """Give the node for what was found under a name, both of which the kernel is told."""
        with self.lock:
            known, changed = self._take(found, old=False)
            changed |= self._name(known, parent, name)
            self._looked_up(known, 1, changed=changed)
            return known

    def _take(self, found: Attributes, *, old: bool) -> tuple[Known, bool]:
        """Give the node for what was found, and whether a successor has to know more of it."""
        packed = attributes_bytes(found, found.inode)
        known = self._matching(found, old=old)
        if known is None:
            known = Known(next(self._numbers), found.node, found.content, found.origin)
            self._add(known)
        if found.origin:
            known.origin = found.origin
        changed = known.packed != packed
        known.packed = packed
        return known, changed

    def _looked_up(self, known: Known, count: int, *, changed: bool) -> None:
        known.lookups += count
        if changed:
            self._ledger.node(known.number, self._facts(known), count)
        else:
            self._ledger.looked_up(known.number, count)

    def _matching(self, found: Attributes, *, old: bool) -> Known | None:
        for known in self._of_node.get(found.node, ()):
            if known.detached and not old:
                continue
            if known.content == found.content:
                return known
            if known.grows_to(found):
                known.content = found.content
                return known
        return None

    def named(self, known: Known, parent: Known, name: str) -> None:
        """Take note that the kernel is being told this name of a node."""
        with self.lock:
            if self._name(known, parent, name):
                self.note(known)

    def _name(self, known: Known, parent: Known, name: str) -> bool:
        """Remember a name; say whether the node had it not."""
        children = parent.children
        if children is None:
            children = parent.children = {}
        if children.get(name) is known:
            return False
        self._untell(parent, name)
        children[name] = known
        known.names.add((parent.number, name))
        return True

    def absent(self, parent: Known, name: str) -> None:
        """Take note that the kernel is being told that there is no such name."""
        with self.lock:
            self._untell(parent, name)
            if parent.children is None:
                parent.children = {}
            parent.children[name] = ABSENT
            self._absent[parent.number, name] = None
            while len(self._absent) > _ABSENT_MAX:
                (number, oldest), _ = self._absent.popitem(last=False)
                above = self.find(number)
                if above is not None and above.children is not None:
                    above.children.pop(oldest, None)
                self._notify_absent(number, oldest)

    def untell(self, parent: Known, name: str) -> None:
        """Take note that the kernel knows nothing of a name any more."""
        with self.lock:
            self._untell(parent, name)

    def _untell(self, parent: Known, name: str) -> None:
        if parent.children is None or name not in parent.children:
            return
        known = parent.children.pop(name)
        if known is None:
            self._absent.pop((parent.number, name), None)
        else:
            known.names.discard((parent.number, name))

    def note(self, known: Known) -> None:
        """Write down what a successor has to know of a node."""
        if known.number != ROOT_NUMBER:
            self._ledger.node(known.number, self._facts(known))

    @staticmethod
    def _facts(known: Known) -> bytes:
        node = known.node
        flags = (_NAMED if isinstance(node, tuple) else 0) | (_DETACHED if known.detached else 0)
        words = ["\1".join(node) if isinstance(node, tuple) else str(node)]
        words.append("" if known.content is None else "c" + known.content.hex())
        words += [f"{parent}\1{name}" for parent, name in known.names]
        facts = "\0".join(words).encode("utf-8", "surrogateescape")
        packed = known.packed or bytes(_PACKED_BYTES)
        return _FACTS.pack(known.origin, flags) + packed + facts

    # Forgetting

    def forget(self, number: int, count: int) -> None:
        """Let the kernel have forgotten a node so many times; the last time it goes."""
        if number == ROOT_NUMBER:
            return
        with self.lock:
            known = self.find(number)
            if known is None:
                return
            known.lookups -= count
            self._ledger.forgot(number, count)
            if known.lookups <= 0:
                self.forgotten(known)
                if not known.handles:
                    self.drop(known)

    def drop(self, known: Known) -> None:
        """Let a node go for good."""
        with self.lock:
            self._by_number.pop(known.number, None)
            self._leave(known)
            for parent_number, name in list(known.names):
                parent = self.find(parent_number)
                if parent is not None and parent.children is not None:
                    parent.children.pop(name, None)
            for name, child in (known.children or {}).items():
                if child is None:
                    self._absent.pop((known.number, name), None)
                else:
                    child.names.discard((known.number, name))

    def _leave(self, known: Known) -> None:
        there = self._of_node.get(known.node)
        if there is not None and known in there:
            there.remove(known)
            if not there:
                del self._of_node[known.node]

    # Changing

    def becomes(self, known: Known, found: Attributes, content: bytes | None) -> None:
        """Take note that a node is something else by now: an unstored file that was stored."""
        with self.lock:
            if known.node != found.node:
                self._leave(known)
                known.node = found.node
                self._of_node.setdefault(found.node, []).append(known)
            known.content = content
            known.packed = attributes_bytes(found, found.inode)
            if found.origin:
                known.origin = found.origin
            self.note(known)

    def detach(self, known: Known) -> list[tuple[int, str]]:
        """Let no name lead to a node any more; give the names that the kernel still has."""
        with self.lock:
            known.detached = True
            self.note(known)
            return list(known.names)

    def renamed(self, parent: Known, name: str, target: Known, new_name: str) -> None:
        """Follow a rename that the kernel asked for, and so knows of."""
        with self.lock:
            known = (parent.children or {}).get(name)
            self._untell(parent, name)
            if known is None:
                self._untell(target, new_name)
            else:
                self.named(known, target, new_name)

    # Taking over

    def restore(self, nodes: dict[int, tuple[int, bytes]]) -> None:
        """Know again what another process left in the ledger."""
        with self.lock:
            for number, (lookups, facts) in nodes.items():
                if number != ROOT_NUMBER:
                    self._restore(number, lookups, facts)
            for known in list(self._by_number.values()):
                for parent_number, name in list(known.names):
                    parent = self.find(parent_number)
                    if parent is None:
                        known.names.discard((parent_number, name))
                        continue
                    if parent.children is None:
                        parent.children = {}
                    parent.children[name] = known
            self._numbers = itertools.count(max(self._by_number, default=1) + 1)

    def _restore(self, number: int, lookups: int, facts: bytes) -> None:
        origin, flags = _FACTS.unpack_from(facts)
        at = _FACTS.size + _PACKED_BYTES
        name, content, *names = facts[at:].decode("utf-8", "surrogateescape").split("\0")
        node: Node = tuple(name.split("\1")) if flags & _NAMED else int(name)
        known = Known(number, node, bytes.fromhex(content[1:]) if content else None, origin)
        known.packed = facts[_FACTS.size : at]
        known.lookups = lookups
        known.detached = bool(flags & _DETACHED)
        known.names = set(_places(names))
        self._add(known)


def _places(words: Iterable[str]) -> Iterable[tuple[int, str]]:
    for word in words:
        number, _, name = word.partition("\1")
        yield int(number), name
