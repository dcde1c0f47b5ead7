"""The catalog: folders and artifacts, what names them and what changes them without new content.

Its ground is `kvstate.folders` (identities, listings, counts of what is visible), on which
`kvstate.filing` keeps artifacts' records, indexes, trash and totals, and `kvstate.renaming` gives
names. Here are attributes, holds, and the notes that a read or a failed move leaves.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from kvstate.errors import InvalidValue, NotFound
from kvstate.filing import as_file
from kvstate.nodes import Failure, File, Node, described
from kvstate.renaming import Renaming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvstate.journal import Change

__all__ = ["Catalog"]

_ATTRIBUTES_BYTES_MAX = 65536
_RETRY_NS = 60 * 10**9
_RETRY_NS_MAX = 86400 * 10**9


class Catalog(Renaming):
    """The folders and artifacts of a store."""

    # Attributes

    def set_attributes(
        self,
        node_id: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        modified_ns: int | None = None,
        accessed_ns: int | None = None,
    ) -> Node:
        """Change what is given; `NotFound` when the identity is gone."""

        def edit(node: Node, change: Change) -> Node:
            if mode is not None:
                kind = stat.S_IFMT(node.mode)
                node = node._replace(mode=kind | stat.S_IMODE(mode))
            if modified_ns is not None:
                node = node._replace(modified_ns=modified_ns)
            if accessed_ns is not None and isinstance(node, File):
                node = node._replace(accessed_ns=accessed_ns)
            return node._replace(
                uid=node.uid if uid is None else uid,
                gid=node.gid if gid is None else gid,
                changed_ns=change.at_ns,
            )

        return self.edit(node_id, edit, "attributes")

    def set_xattr(self, node_id: int, name: str, value: bytes | None) -> Node:
        """Set or remove (None) an extended attribute; `NotFound` when there is none to remove."""

        def edit(node: Node, change: Change) -> Node:
            xattrs = dict(node.xattrs)
            if value is None:
                if name not in xattrs:
                    raise NotFound("attribute", name)
                del xattrs[name]
            else:
                xattrs[name] = value
            if sum(len(key) + len(item) for key, item in xattrs.items()) > _ATTRIBUTES_BYTES_MAX:
                raise InvalidValue("attributes", "all of one file may have 64 KiB together")
            return node._replace(xattrs=xattrs, changed_ns=change.at_ns)

        return self.edit(node_id, edit, "xattr")

    def edit(
        self,
        node_id: int,
        function: Callable[[Node, Change], Node],
        why: str,
        *,
        kind: str = "update",
    ) -> Node:
        """Change a record by a function; say so in the journal."""

        def run(change: Change) -> Node:
            node = self.node(node_id, change.tx)
            if node is None:
                raise NotFound("node", f"#{node_id}")
            edited = function(node, change)
            if isinstance(edited, File):
                edited = self.put_file(change, edited, as_file(node))
            else:
                self.write_node(change, edited)
            change.say(kind, "", self.path(node_id, change.tx), described(edited), None, why)
            return edited

        return self._journal.commit(run)

    # Holds

    def hold(self, file: File, case: str, why: str) -> File:
        """Hold an artifact for a case: who, when and why; a second time changes only the why."""
        if not case or not case.isprintable() or len(case.encode()) > 255:
            raise InvalidValue("case", f"{case!r} is no name of 1 to 255 bytes")

        def edit(node: Node, change: Change) -> Node:
            there = as_file(node)
            about = {"by": change.actor, "at_ns": change.at_ns, **there.holds.get(case, {})}
            holds = {**there.holds, case: {**about, "reason": why}}
            return there._replace(holds=holds, changed_ns=change.at_ns)

        return as_file(self.edit(file.id, edit, f"{case}: {why}" if why else case, kind="hold"))

    def release(self, file: File, case: str, why: str) -> File:
        """Release a hold; `NotFound` when there is none for this case."""

        def edit(node: Node, change: Change) -> Node:
            there = as_file(node)
            if case not in there.holds:
                raise NotFound("hold", case)
            holds = {name: about for name, about in there.holds.items() if name != case}
            return there._replace(holds=holds, changed_ns=change.at_ns)

        return as_file(self.edit(file.id, edit, f"{case}: {why}" if why else case, kind="release"))

    # What reads and failed moves leave

    def note_reads(self, reads: Iterable[tuple[int, int]]) -> None:
        """Record when artifacts (by identity) were last read; not a change that anybody is told."""

        def run(change: Change) -> None:
            for node_id, at_ns in known:
                node = self.node(node_id, change.tx)
                if isinstance(node, File) and node.accessed_ns < at_ns:
                    self.write_node(change, node._replace(accessed_ns=at_ns))

        known = list(reads)
        self._journal.commit(run)

    def note_failure(self, file: File, tier: int, why: str) -> None:
        """Record that a move failed, and when to try again: 1 minute, 2, 4, ... up to a day."""

        def run(change: Change) -> None:
            node = self.node(file.id, change.tx)
            if not isinstance(node, File) or node.revision != file.revision:
                return
            tries = 1 if node.failure is None else node.failure.tries + 1
            wait_ns = min(_RETRY_NS << min(tries - 1, 30), _RETRY_NS_MAX)
            failure = Failure(tier, why[:500], tries, change.at_ns, change.at_ns + wait_ns)
            failed = self.put_file(change, node._replace(failure=failure), node)
            path = self.path(file.id, change.tx)
            change.say("fail", "", path, described(failed), None, f"try {tries}: {failure.why}")

        self._journal.commit(run)
