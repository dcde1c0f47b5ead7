"""What every part of a namespace stands on: where its keys are, and commits with a writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstate.clock import datetime_of
from kvstate.key_mapping import KeyMapping
from kvstate.keys import KeyWriter
from kvstate.keyspace import namespace_key
from kvstate.names import check_key, check_namespace
from kvstate.records import Envelope, open_envelope
from kvstate.space import Space, open_space
from kvstate.state import expired

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from kvstate.journal import Change, Spilled
    from kvstate.state import State

__all__ = ["KeyBase"]


class KeyBase(KeyMapping):
    """A namespace of a store: how its keys are found and changed."""

    def __init__(self, state: State, name: str) -> None:
        self.name = name
        self._state = state
        self._name_bytes = check_namespace(name)
        self._get = state.engine.get
        self._number: int | None = None
        self._prefix = b""
        self._record_key = namespace_key(self._name_bytes)
        self._known: tuple[bytes, Space] | None = None

    def __repr__(self) -> str:
        return f"<kvstate namespace {self.name!r}>"

    # Where keys are

    def _space(self) -> Space | None:
        record = self._get(self._record_key)
        if record is None:
            return None
        if self._known is None or self._known[0] != record:
            self._known = record, open_space(self._record_key, record)
        return self._known[1]

    def _find_prefix(self) -> bool:
        space = self._space()
        number = None if space is None else space.number
        if number != self._number:
            self._prefix = b"" if space is None else space.prefix
            self._number = number
        return number is not None

    def _envelope(self, key: str) -> Envelope | None:
        name = check_key(key)
        if not self._prefix and not self._find_prefix():
            return None
        full = self._prefix + name
        data = self._get(full)
        if data is None:
            return None
        envelope = open_envelope(full, data)
        return None if expired(envelope, self._state.clock.now_ns()) else envelope

    def now(self) -> datetime:
        """Give the time by the store's clock, in UTC."""
        return datetime_of(self._state.clock.now_ns())

    # Commits

    def _change(
        self,
        function: Callable[[KeyWriter, Change, list[Spilled]], Any],
        large: Sequence[bytes] = (),
    ) -> Any:
        """Run the function with a writer in one commit; the namespace is made if need be."""
        state, name = self._state, self._name_bytes

        def run(change: Change, blobs: list[Spilled]) -> Any:
            writer = KeyWriter(state, change, state.made(name, change))
            result = function(writer, change, blobs)
            writer.finish()
            return result

        return state.commit(run, large)

    def _change_if_there(self, function: Callable[[Change, KeyWriter | None], Any]) -> Any:
        """Run the function in one commit, with a writer if there is such a namespace."""
        state, name = self._state, self._name_bytes

        def run(change: Change, _: list[Spilled]) -> Any:
            space = state.found(name, change)
            writer = None if space is None else KeyWriter(state, change, space)
            result = function(change, writer)
            if writer is not None:
                writer.finish()
            return result

        return state.commit(run)
