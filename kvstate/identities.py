"""Identities that are given before there is anything that has them.

A file in a mount has a number from the moment it is made, and is stored only when it is closed; its
number must not change by that. So a process takes a block of identities for itself, in a commit of
its own, and gives them one by one; those that nobody used when it ends are never used. The record
``M identities`` has the number of blocks that were taken.

    1(1 bit)  block(43)  number(12)      those that were given ahead
    0(1 bit)  revision(43)  number(12)   those that a commit gives (`Change.new_id`)
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from kvstate.codec import decode, encode
from kvstate.errors import Damaged
from kvstate.keyspace import meta_key
from kvstate.records import open_envelope, seal_envelope

if TYPE_CHECKING:
    from kvstate.clock import Clock
    from kvstate.engine import Engine, Transaction

__all__ = ["BLOCKS_KEY", "Identities", "block_of", "open_blocks", "seal_blocks"]

BLOCKS_KEY: Final = meta_key("identities")
_BITS: Final = 12
_AHEAD: Final = 1 << 55


class Identities:
    """The identities that this process has taken and not given yet."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0
        self._stop = 0

    def take(self) -> int:
        """Give an identity that was never given before, by anybody; durably taken."""
        with self._lock:
            if self._next == self._stop:
                block = self._engine.txn(self._take_block)
                self._next = _AHEAD | block << _BITS
                self._stop = self._next + (1 << _BITS)
            given = self._next
            self._next += 1
            return given

    def _take_block(self, tx: Transaction) -> int:
        data = tx.get(BLOCKS_KEY)
        blocks = 0 if data is None else open_blocks(data)
        tx.put(BLOCKS_KEY, seal_blocks(blocks + 1, self._clock.now_ns()))
        return blocks


def open_blocks(data: bytes) -> int:
    """Give how many blocks were taken, from the record."""
    blocks = decode(open_envelope(BLOCKS_KEY, data).payload)
    if not isinstance(blocks, int):
        raise Damaged("the store", "its record of identities is unreadable")
    return blocks


def seal_blocks(blocks: int, at_ns: int) -> bytes:
    """Give the record that says so."""
    return seal_envelope(BLOCKS_KEY, encode(blocks), revision=0, created_ns=at_ns, updated_ns=at_ns)


def block_of(identity: int) -> int | None:
    """Give the block of an identity that was given ahead; None for any other."""
    return (identity & ~_AHEAD) >> _BITS if identity & _AHEAD else None
