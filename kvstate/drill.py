"""The recovery drill: a sample of what is cold, brought back into a folder and compared.

It works through both doors: it needs nothing but the artifacts' own methods, and changes nothing in
the store.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.artifact_reading import Verified
from kvstate.codec import Hasher
from kvstate.errors import StateError
from kvstate.places import raise_os_error

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from io import IOBase
    from typing import Protocol

    from kvstate.artifact_files import Artifact

    class _Artifacts(Protocol):
        def list(self, prefix: str = "", *, tier: str | None = None) -> Iterator[Artifact]: ...

        def open(self, name: str, mode: str = "r") -> IOBase: ...


__all__ = ["Drill", "drill"]

_READ_BYTES: Final = 1 << 20


class Drill(NamedTuple):
    """What a drill restored: each with what is wrong with it, if anything is."""

    target: str
    restored: tuple[Verified, ...]
    bytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether something was restored, and nothing is wrong with it."""
        return bool(self.restored) and not any(each.problem for each in self.restored)


def drill(
    artifacts: _Artifacts,
    target: str | os.PathLike[str],
    *,
    count: int = 5,
    prefix: str = "",
    from_tier: str = "cold",
    seed: int | None = None,
) -> Drill:
    """Write a random sample of a tier's artifacts below a folder, and read it back from there.

    What lies there under these names already is not overwritten: that is a problem of its own.
    """
    began = time.monotonic()
    folder = Path(target)
    # A reservoir: every artifact has the same chance, in memory for the sample alone.
    chance = random.Random(seed)  # noqa: S311  (a sample, not a secret)
    sample: list[Artifact] = []
    for seen, artifact in enumerate(artifacts.list(prefix, tier=from_tier)):
        if len(sample) < count:
            sample.append(artifact)
        elif (at := chance.randrange(seen + 1)) < count:
            sample[at] = artifact
    restored = [
        Verified(artifact.name, artifact.size, _restore(artifacts, artifact, folder))
        for artifact in sample
    ]
    total = sum(each.size for each in restored)
    return Drill(str(folder), tuple(restored), total, time.monotonic() - began)


def _restore(artifacts: _Artifacts, artifact: Artifact, folder: Path) -> str:
    """Write one artifact into the folder and compare; give what is wrong, empty for nothing."""
    path = folder / artifact.name
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with artifacts.open(artifact.name) as source, path.open("xb") as file:
                while data := source.read(_READ_BYTES):
                    file.write(data)
            found = Hasher()
            with path.open("rb") as file:
                while data := file.read(_READ_BYTES):
                    found.update(data)
        except OSError as error:
            raise_os_error(error, str(path))
    except StateError as error:
        return str(error)
    digest = f"xxh3:{found.hexdigest()}"
    return "" if digest == artifact.digest else f"it has the digest {digest}, not {artifact.digest}"
