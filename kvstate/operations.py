"""What can be asked over the socket: one table for the server, the client and the documentation.

Pure data. The server checks a request's arguments against it and calls the handler of that name,
the client asks only what stands here, and `docs/protocol.md` holds `as_markdown` (a test compares
them; ``python -m kvstate.operations`` prints it).

Kinds of arguments: ``name`` and ``value`` are taken as they come (the store itself says what is no
name, no duration in seconds, no moment; a value is anything of the model); the others are checked
where the request comes in. An argument whose kind ends in ``?`` may be null, and may be left out at
the end of the request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvstate.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "OPERATIONS",
    "PROTOCOL",
    "Argument",
    "Check",
    "Operation",
    "as_markdown",
    "checked_options",
]

PROTOCOL: Final = 1
"""The version of the protocol; both sides name theirs in ``hello``."""

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "name": (object,),
    "value": (object,),
    "text": (str,),
    "bool": (bool,),
    "int": (int,),
    "number": (int, float),
    "bytes": (bytes,),
    "names": (list,),
    "list": (list,),
    "mapping": (dict,),
}


class Argument(NamedTuple):
    """One argument of an operation: its name and its kind, with ``?`` when null is allowed."""

    name: str
    kind: str

    @property
    def optional(self) -> bool:
        """Whether null is allowed, and leaving it out at the end."""
        return self.kind.endswith("?")

    def check(self, given: object) -> None:
        """Raise `InvalidValue` unless ``given`` is of this argument's kind."""
        if given is None and self.optional:
            return
        types = _TYPES[self.kind.rstrip("?")]
        # A bool is an int to Python, not to us.
        if not isinstance(given, types) or (given.__class__ is bool and int in types):
            raise InvalidValue(self.name, f"{type(given).__name__} is not of the kind {self.kind}")


class Operation(NamedTuple):
    """One row: its name, what it takes, what it gives, whether it may change the store, and why."""

    name: str
    arguments: tuple[Argument, ...]
    result: str
    writes: bool
    doc: str

    @property
    def needed(self) -> int:
        """How many arguments a request must bring at least."""
        return sum(not argument.optional for argument in self.arguments)


class Check:
    """Whether a request's arguments fit an operation, made ready: most arguments need no look."""

    __slots__ = ("_least", "_looks", "_most", "_operation")

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._least = operation.needed
        self._most = len(operation.arguments)
        self._looks = [
            (index, argument)
            for index, argument in enumerate(operation.arguments)
            if _TYPES[argument.kind.rstrip("?")] != (object,)
        ]

    def __call__(self, given: list[object]) -> None:
        """Raise `InvalidValue` unless these arguments fit."""
        count = len(given)
        if not self._least <= count <= self._most:
            names = ", ".join(argument.name for argument in self._operation.arguments) or "none"
            raise InvalidValue(
                f"arguments of {self._operation.name!r}",
                f"{count} given, it takes {self._least} to {self._most}: {names}",
            )
        for index, argument in self._looks:
            if index < count:
                argument.check(given[index])


_OPTIONS: Final = {
    "metadata": "mapping?",
    "tier": "name?",
    "from_tier": "name?",
    "replace": "bool?",
    "unless_same": "bool?",
    "reason": "text?",
    "trash": "bool?",
    "older_than": "value",
    "newer_than": "value",
    "size_min": "int?",
    "size_max": "int?",
    "held": "bool?",
    "newest": "bool?",
    "after": "name?",
    "limit": "int?",
    "for_seconds": "value",
    "dry_run": "bool?",
    "bytes_max": "int?",
    "rate": "number?",
    "restart": "bool?",
    "verify": "bool?",
    "repair": "bool?",
}


def checked_options(given: Mapping[str, Any] | None, *names: str) -> dict[str, Any]:
    """Give the options that are set; `InvalidValue` for an unknown one, or of another kind."""
    options = {}
    for name, value in (given or {}).items():
        if name not in names:
            raise InvalidValue("options", f"{name!r} is none of {', '.join(names)}")
        Argument(name, _OPTIONS[name]).check(value)
        if value is not None:
            options[name] = value
    return options


def _reads(name: str, result: str, doc: str, /, **arguments: str) -> Operation:
    return Operation(name, tuple(Argument(*pair) for pair in arguments.items()), result, False, doc)


def _writes(name: str, result: str, doc: str, /, **arguments: str) -> Operation:
    return _reads(name, result, doc, **arguments)._replace(writes=True)


_TABLE: Final = (
    # The connection and the store as a whole.
    _reads(
        "hello",
        "mapping",
        "Say which protocol the client speaks; gives protocol, version, store, pid, "
        "frame_bytes_max. Incompatible when the server does not speak it.",
        protocol="int",
    ),
    _reads("revision", "int", "The number of the newest commit."),
    _reads(
        "wait",
        "int",
        "Wait until there is a commit past this revision, for at most so many seconds (60 at "
        "most; a further request on the connection ends it early); gives the newest revision.",
        revision="int",
        timeout="number",
    ),
    _reads("stats", "mapping", "What is stored, in numbers."),
    _reads(
        "check",
        "[[[kind, where, why], ...], counts]",
        "Walk over the whole store and name every inconsistency; verify reads all content, too. "
        "With progress, frames of [done, total or 0, name] go before the result.",
        verify="bool?",
        progress="bool?",
    ),
    _writes(
        "repair",
        "[[[kind, where, why], ...], counts, [[kind, where, why], ...]]",
        "Check, and write anew what can be found again; gives what is left, and what was repaired.",
        verify="bool?",
        progress="bool?",
    ),
    _writes(
        "scrub",
        "[bytes, records, blobs, damaged, healed, complete, started_at]",
        "Read everything that is stored, from where the last scrub ended; progress as for check. "
        "Options: bytes_max, rate, restart.",
        options="mapping?",
        progress="bool?",
    ),
    _reads(
        "journal",
        "listing of events",
        "What the commits after a revision did, oldest first; namespace and prefix (of names) "
        "leave out all else. With strict, revision 0 has to be there, too: Compacted.",
        since="int?",
        limit="int?",
        namespace="name?",
        prefix="text?",
        strict="bool?",
    ),
    _reads(
        "journal_verify",
        "[records, first, last, tip, altered?, kind, why, noted?]",
        "Walk along the journal's hash chain; altered is the first revision with which something "
        "is wrong. noted says whether the link expect (hex) is in the chain.",
        expect="text?",
    ),
    # Listings.
    _reads("more", "[rows, handle?]", "The next rows of a listing.", handle="int"),
    _reads(
        "close",
        "null",
        "Let go of a handle before its end; an unknown one is ignored.",
        handle="int",
    ),
    # Namespaces and keys.
    _reads("namespaces", "listing of names", "The names of all namespaces, in byte order."),
    _writes("make_namespace", "null", "Make an empty namespace.", namespace="name"),
    _writes("remove_namespace", "bool", "Remove a namespace that has no keys.", namespace="name"),
    _reads(
        "get",
        "[value] or null",
        "The value under a key, now, as of a revision, or at a moment; null when there is none. "
        "Compacted when that is not known any more.",
        namespace="name",
        key="name",
        revision="value?",
        at="value?",
    ),
    _reads(
        "entry",
        "entry or null",
        "The value under a key with its revision and times.",
        namespace="name",
        key="name",
    ),
    _writes(
        "configure",
        "mapping",
        "Change some of a namespace's settings; gives all of them.",
        namespace="name",
        options="mapping",
    ),
    _reads("settings", "mapping", "A namespace's settings.", namespace="name"),
    _reads(
        "used", "[keys, bytes]", "How much a namespace holds, for its quotas.", namespace="name"
    ),
    _reads(
        "history",
        "[versions]",
        "What is kept of a key's past, oldest first; limit gives only the newest.",
        namespace="name",
        key="name",
        limit="int?",
    ),
    _writes(
        "rollback",
        "int",
        "Set a key to what it was as of a revision, or at a moment; gives the new revision.",
        namespace="name",
        key="name",
        revision="value?",
        at="value?",
    ),
    _reads(
        "find",
        "listing of entries",
        "The entries that have these values in indexed fields, in the order of the first index. "
        "where holds [path, value] or [path, low, high] each; after is [key, value].",
        namespace="name",
        where="list",
        limit="int?",
        after="list?",
        reverse="bool?",
    ),
    _writes(
        "transact",
        "int",
        "Write all of these, or none, if what was seen is still so: seen holds [namespace, key, "
        "revision], ranges [namespace, prefix, start, limit, reverse, [[key, revision], ...]], "
        "writes [namespace, key, kind, value, ttl, expires_at, keep_ttl] (kind is set, delete or "
        "expire). Conflict when something has changed.",
        seen="list",
        ranges="list",
        writes="list",
    ),
    _reads("count", "int", "How many keys the namespace has.", namespace="name"),
    _writes(
        "set",
        "int",
        "Store a value; gives the revision. Conflict when a condition does not hold.",
        namespace="name",
        key="name",
        value="value",
        ttl="value?",
        expires_at="value?",
        if_absent="bool?",
        if_present="bool?",
        if_revision="int?",
        keep_ttl="bool?",
    ),
    _writes(
        "delete",
        "bool",
        "Remove a key; says whether it was there.",
        namespace="name",
        key="name",
        if_revision="int?",
    ),
    _reads(
        "scan",
        "listing of entries",
        "The entries whose keys begin with the prefix, in key order.",
        namespace="name",
        prefix="name?",
        start="name?",
        limit="int?",
        reverse="bool?",
        revision="value?",
        at="value?",
    ),
    _reads(
        "keys", "listing of names", "The keys of the namespace, in key order.", namespace="name"
    ),
    _reads(
        "get_many",
        "listing of [key, value]",
        "The values of those keys that are there, all as of one revision.",
        namespace="name",
        keys="names",
    ),
    _writes(
        "set_many",
        "int",
        "Store all of these, or none; gives the revision.",
        namespace="name",
        values="mapping",
        ttl="value?",
        expires_at="value?",
    ),
    _writes(
        "upsert_many",
        "[total, new, changed, unchanged]",
        "Store those of these that are absent or have another value.",
        namespace="name",
        values="mapping",
        ttl="value?",
        expires_at="value?",
    ),
    _writes(
        "delete_prefix",
        "int",
        "Remove the keys that begin with this, in one commit; says how many.",
        namespace="name",
        prefix="name",
    ),
    _writes(
        "expire_prefix",
        "int",
        "Let the keys that begin with this expire then, in one commit; says how many.",
        namespace="name",
        prefix="name",
        ttl="value?",
        expires_at="value?",
    ),
    _writes(
        "increment",
        "number",
        "Add to the number under a key; gives the new one. An absent key counts from default.",
        namespace="name",
        key="name",
        by="value?",
        default="value?",
        ttl="value?",
    ),
    _writes(
        "append",
        "int",
        "Append to the list under a key; gives its length. limit keeps only the last so many.",
        namespace="name",
        key="name",
        items="list",
        limit="int?",
    ),
    _reads(
        "ttl",
        "float or null",
        "Seconds left; null when the key never expires.",
        namespace="name",
        key="name",
    ),
    _writes(
        "expire",
        "bool",
        "Let a key expire after so many seconds, or at a moment; says whether that is so now. "
        "only_if is absent, present, longer or shorter.",
        namespace="name",
        key="name",
        ttl="value?",
        expires_at="value?",
        only_if="value?",
        if_revision="int?",
    ),
    _writes(
        "touch",
        "bool",
        "Let a key live for so many seconds, or as its namespace says, from now on.",
        namespace="name",
        key="name",
        ttl="value?",
    ),
    _writes("persist", "bool", "Let a key never expire.", namespace="name", key="name"),
    _writes(
        "rename",
        "int",
        "Give a key another name; its expiry goes with it.",
        namespace="name",
        old="name",
        new="name",
        replace="bool?",
    ),
    # Artifacts.
    _writes(
        "artifact_put",
        "artifact",
        "Store content that fits into one frame. Options: metadata, tier, replace, unless_same "
        "(leave what is there if it has these bytes and this metadata), reason.",
        name="name",
        content="bytes",
        options="mapping?",
    ),
    _writes(
        "artifact_upload",
        "null, then artifact",
        "Store content of any size: after the null the client sends frames of one byte string "
        "each; an empty one stores, null drops it all. An error may be sent before the end. "
        "Options as for artifact_put.",
        name="name",
        options="mapping?",
    ),
    _writes(
        "artifact_put_many",
        "[total, new, changed, unchanged]",
        "Store these [name, bytes] in one commit, but for those that are stored already. Options: "
        "metadata, tier, reason.",
        items="list",
        options="mapping?",
    ),
    _reads(
        "artifact_get",
        "bytes, or [handle, size]",
        "The content; what is too large for one frame is opened for reading instead.",
        name="name",
    ),
    _reads(
        "artifact_open",
        "[handle, size]",
        "Open content for reading; it stays the same until close.",
        name="name",
    ),
    _reads(
        "artifact_read",
        "bytes",
        "At most so many bytes from this offset; empty past the end.",
        handle="int",
        offset="int",
        size="int",
    ),
    _reads("artifact_stat", "artifact", "What is known of an artifact.", name="name"),
    _reads("artifact_exists", "bool", "Whether there is an artifact of this name.", name="name"),
    _reads(
        "artifact_list",
        "listing of artifacts",
        "The artifacts below a prefix, in name order. Options: tier, older_than, newer_than "
        "(seconds, or a moment), size_min, size_max, metadata, held, newest, after, limit.",
        prefix="name?",
        options="mapping?",
    ),
    _reads("artifact_parts", "listing of artifacts", "A folder's artifacts in order.", name="name"),
    _reads(
        "artifact_usage",
        "[hot, warm, cold, held, failed]",
        "What the store, a tenant or a workflow holds: [artifacts, bytes] per tier.",
        path="name?",
    ),
    _reads(
        "artifact_usages",
        "listing of [name, usage]",
        "Each tenant, or each workflow of a tenant, with what it holds.",
        tenant="name?",
    ),
    _writes(
        "artifact_delete",
        "bool",
        "Remove an artifact; says whether it was there. Options: reason, trash.",
        name="name",
        options="mapping?",
    ),
    _reads(
        "artifact_trash",
        "listing of [name, tier, size, trashed_at, gone_at, why, actor]",
        "What is in the trash, in the order in which it goes for good.",
        prefix="text?",
    ),
    _writes("artifact_undelete", "artifact", "Bring an artifact back from the trash.", name="name"),
    _writes(
        "artifact_empty_trash",
        "int",
        "Let what is in the trash under names with this prefix go now; says how many.",
        prefix="text?",
        reason="text?",
    ),
    _writes(
        "artifact_rename",
        "artifact or null",
        "Give an artifact or a folder of them (null) another name. Options: replace, reason.",
        old="name",
        new="name",
        options="mapping?",
    ),
    _writes(
        "artifact_hold",
        "artifact",
        "Hold an artifact for a case: no purge, overwrite, rename or delete before its release.",
        name="name",
        case="text",
        reason="text?",
    ),
    _writes(
        "artifact_release",
        "artifact",
        "Release an artifact's hold for a case.",
        name="name",
        case="text",
        reason="text?",
    ),
    _writes(
        "artifact_move",
        "artifact",
        "Move an artifact to a tier; progress as for check.",
        name="name",
        tier="name",
        reason="text?",
        progress="bool?",
    ),
    _writes(
        "artifact_restore",
        "artifact",
        "Bring an artifact back, by default to hot; progress as for check. Options: for_seconds, "
        "reason.",
        name="name",
        tier="name?",
        options="mapping?",
        progress="bool?",
    ),
    _writes(
        "artifact_restore_all",
        "listing of artifacts",
        "Bring back what lies below a folder. Options: from_tier, limit, for_seconds, dry_run, "
        "reason.",
        prefix="name?",
        tier="name?",
        options="mapping?",
    ),
    _reads(
        "artifact_verify",
        "artifact",
        "Read all of the content and compare its digest; or Damaged.",
        name="name",
    ),
    _reads(
        "artifact_verify_all",
        "listing of [name, size, problem]",
        "Read everything below a folder; a problem is empty when nothing is wrong.",
        prefix="name?",
    ),
    _writes(
        "artifact_update",
        "artifact",
        "Set an artifact's metadata.",
        name="name",
        metadata="mapping",
        reason="text?",
    ),
    # The lifecycle.
    _reads(
        "lifecycle_plan",
        "listing of moves",
        "What is due now, or until a moment (ns since 1970), in due order; after holds the "
        "[due_at, id] of a page's last.",
        limit="int?",
        until="int?",
        after="list?",
    ),
    _reads(
        "lifecycle_explain",
        "[name, tier, rule, action, steps, why]",
        "Which rule decides over an artifact, what is due when, what is in the way.",
        name="name",
    ),
    _writes(
        "lifecycle_run",
        "outcome",
        "Do what is due, or just the moves of a plan; progress as for check.",
        dry_run="bool?",
        plan="list?",
        progress="bool?",
    ),
    _reads(
        "lifecycle_next_due", "int or null", "When the next thing becomes due, in ns since 1970."
    ),
    _reads("lifecycle_last", "outcome or null", "What the last run did."),
    _reads("lifecycle_summary", "mapping", "Tiers, the last run and the next due time."),
    _reads("lifecycle_policy", "mapping", "The rules in force, in the shape of the settings file."),
    _writes(
        "lifecycle_configure",
        "mapping",
        "Change some of the rules for everybody; null takes a change back. Gives all in force.",
        settings="mapping",
    ),
)

OPERATIONS: Final[dict[str, Operation]] = {operation.name: operation for operation in _TABLE}
"""The table, by name, in the order of the documentation."""


def as_markdown() -> str:
    """Give the table as `docs/protocol.md` holds it."""
    lines = ["| operation | arguments | result | writes | |", "|---|---|---|---|---|"]
    for name, arguments, result, writes, doc in OPERATIONS.values():
        takes = ", ".join(f"{argument.name}: {argument.kind}" for argument in arguments)
        lines.append(f"| `{name}` | {takes} | {result} | {'yes' if writes else ''} | {doc} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")  # noqa: T201  (a command of its own, for the documentation)
