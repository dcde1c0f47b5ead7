"""The seam below the store: ordered bytes in serializable transactions, and nothing else.

Everything above assumes only what the protocols here say. `Engine.txn` runs a function that **may
run more than once**, so it has no side effect but through its transaction: blob files are written
before, callbacks run after the commit. LMDB is the special case that never conflicts; the
conformance suite also runs on a wrapper that runs every function again at random.

Keys are at most `KEY_BYTES_MAX` bytes; values hold what `inline_bytes_max` lets through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["KEY_BYTES_MAX", "Engine", "Reader", "Transaction"]

KEY_BYTES_MAX = 511

T = TypeVar("T")


class Reader(Protocol):
    """One consistent state of the store."""

    def get(self, key: bytes) -> bytes | None:
        """Give the value under this key."""
        ...

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give the pairs with ``start <= key < stop``, in key order or the reverse.

        What the same transaction writes during a scan may or may not be met by it.
        """
        ...


class Transaction(Reader, Protocol):
    """A reader that reads its own writes; all of them take effect, or none."""

    memo: dict[object, Any]
    """What functions remember for the next transaction: what is in it is true of this state.

    It is empty when somebody else has committed since it was filled, and what an aborted
    transaction put into it is gone. So a fact that was read or written needs no second look.
    """

    def put(self, key: bytes, value: bytes) -> None:
        """Store the value under the key."""
        ...

    def delete(self, key: bytes) -> bool:
        """Remove the key; say whether it was there."""
        ...


class Engine(Protocol):
    """Ordered bytes that outlive the process (or not: memory)."""

    def get(self, key: bytes) -> bytes | None:
        """Give the newest committed value under this key: the fast path."""
        ...

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Give one page of at most ``limit`` pairs of the newest state."""
        ...

    def read(self, function: Callable[[Reader], T]) -> T:
        """Run the function on one consistent state. Keep it short: it pins that state's pages."""
        ...

    def txn(self, function: Callable[[Transaction], T]) -> T:
        """Run the function in a transaction, as often as it takes; durable when this returns.

        An exception of the function leaves nothing behind. `Full` when there is no room;
        `Unavailable` after a commit failed in a way that leaves the disk's state unknown.
        """
        ...

    def revision(self) -> int:
        """Give a number that grows with every commit by anyone (not the store's revision).

        A read that begins afterwards sees at least what this number counts.
        """
        ...

    def watch(self, since: int, timeout: float) -> int:
        """Wait until `revision` is past ``since`` or the time is up; give the revision."""
        ...

    def stats(self) -> dict[str, int]:
        """Give what the engine knows of its size: bytes used, free and at most, readers."""
        ...

    def failure(self) -> str:
        """Give why the store has to be opened again (it failed, or was moved); empty if not."""
        ...

    def close(self) -> None:
        """Let go of everything; using it afterwards raises `Unavailable`."""
        ...
