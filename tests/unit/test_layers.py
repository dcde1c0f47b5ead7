"""The laws of the house, read from the source: which module may import what.

1. Imports run down the list `LAYERS`, or stay on one layer without a circle. An import under
   `TYPE_CHECKING` is an import, and so is `import_module("...")` with a name written out.
2. Inside the house, import from the room (`from kvstate.store import Store`), never through the
   face (`from kvstate import Store`): the face is for guests.
3. One library, one door: what is neither ours nor Python's is imported in one file, and declared.
4. `kvstatefs` and `kvstated` stand side by side and never import each other.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOTS = {
    "kvstate": REPOSITORY,
    "kvstatefs": REPOSITORY / "fusefs",
    "kvstated": REPOSITORY / "daemon",
}
FACE = "kvstate"

# From the bottom up; a package stands for everything in it.
LAYERS = (
    {
        "kvstate.errors",
        "kvstate.faults",
        "kvstate.clock",
        "kvstate.names",
        "kvstate.durations",
        "kvstate.sizes",
        "kvstate.version",
        "kvstate.structs",
        "kvstate.pacing",
        "kvstate.process",
        "kvstate.asking",
        "kvstate.sparse",
    },
    {"kvstate.policy"},
    {
        "kvstate.settings",
        "kvstate.engine",
        "kvstate.codec",
        "kvstate.jsonview",
        "kvstate.typed",
        "kvstate.schemas",
    },
    {
        "kvstate.keyspace",
        "kvstate.records",
        "kvstate.places",
        "kvstate.chain",
        "kvstate.identities",
        "kvstate.journal",
        "kvstate.config",
        "kvstate.config_text",
        "kvstate.toml",
        "kvstate.tier_folders",
        "kvstate.tier_access",
        "kvstate.tier_places",
    },
    {
        "kvstate.staging",
        "kvstate.zstd",
        "kvstate.blob_reader",
        "kvstate.blob_records",
        "kvstate.blob_reading",
        "kvstate.blobs",
    },
    {"kvstate.space", "kvstate.history", "kvstate.indexes", "kvstate.state"},
    {"kvstate.keys", "kvstate.expiry", "kvstate.configuring"},
    {"kvstate.key_mapping", "kvstate.series", "kvstate.key_base"},
    {"kvstate.key_past", "kvstate.key_reading", "kvstate.namespace"},
    {"kvstate.transaction", "kvstate.locks"},
    {"kvstate.nodes", "kvstate.tally", "kvstate.policy_record"},
    {
        "kvstate.folders",
        "kvstate.filing",
        "kvstate.trashing",
        "kvstate.renaming",
        "kvstate.catalog",
        "kvstate.moving",
        "kvstate.reads",
    },
    {
        "kvstate.artifact_files",
        "kvstate.artifact_reading",
        "kvstate.drill",
        "kvstate.artifacts",
    },
    {
        "kvstate.assessing",
        "kvstate.lifecycle",
        "kvstate.scrubbing",
        "kvstate.check",
        "kvstate.check_files",
        "kvstate.copy_workers",
        "kvstate.outcomes",
        "kvstate.repair",
        "kvstate.audit",
        "kvstate.facts",
    },
    {"kvstate.store"},
    {"kvstate.operations", "kvstate.wire", "kvstate.health", "kvstate.metrics"},
    {
        "kvstate.client",
        "kvstate.transfer",
        "kvstate.remote_namespace",
        "kvstate.remote_artifacts",
        "kvstate.remote_lifecycle",
        "kvstate.remote",
    },
    {"kvstate.aio_client", "kvstate.aio_threads", "kvstate.aio"},
    {"kvstate.progress", "kvstate.demo", "kvstate.cli"},
    {"kvstatefs", "kvstated"},
)
# typing_extensions is what Python's own typing will be; type checkers bring it, nothing runs it.
# compression is Python's own from 3.14 on.
PYTHON = sys.stdlib_module_names | {"compression", "typing_extensions"}
ONE_DOOR = ("cbor2", "xxhash")  # one file is the door of both
# Where a distribution's name is not what it is imported as.
IMPORT_NAMES = {
    "fusepy": "fuse",
    "jsonschema-rs": "jsonschema_rs",
    "prometheus-client": "prometheus_client",
}


class Import(NamedTuple):
    importer: str
    target: str
    line: int

    @property
    def at(self):
        return f"{self.importer}:{self.line}"


def top_of(module):
    return module.partition(".")[0]


def layer_of(module):
    for height, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return height
    return None


def targets_of(node, home):
    """Give what one node of the tree imports; ``home`` is the package that it stands in."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        up = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*up, *filter(None, [node.module])])
        yield source
        yield from (f"{source}.{alias.name}" for alias in node.names)
    elif (
        isinstance(node, ast.Call)
        and re.search(r"(^|\.)(import_module|__import__)$", ast.unparse(node.func))
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        yield str(node.args[0].value)


def imports_of(sources, packages):
    """Give every import; of `from a import b`, `a.b` only where that is a module."""
    for module, text in sources.items():
        home = module if module in packages else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(text)):
            for number, target in enumerate(targets_of(node, home)):
                if number == 0 or isinstance(node, ast.Import) or target in sources:
                    yield Import(module, target, node.lineno)


def against_the_layers(sources, imports):
    for module in sources:
        if module != FACE and layer_of(module) is None:
            yield f"{module} stands on no layer"
    for each in imports:
        own, other = layer_of(each.importer), layer_of(each.target)
        if own is not None and other is not None and own < other:
            yield f"{each.at} imports {each.target} from above"


def through_the_face(imports):
    for each in imports:
        if each.target == FACE:
            yield f"{each.at} imports through the face"


def side_by_side(imports):
    for each in imports:
        if {top_of(each.importer), top_of(each.target)} == {"kvstatefs", "kvstated"}:
            yield f"{each.at} imports {top_of(each.target)}: the two stand side by side"


def doors(imports, libraries):
    importers = defaultdict(set)
    for each in imports:
        library = top_of(each.target)
        if library not in ROOTS and library not in PYTHON:
            importers[library].add(each.importer)
    for library, modules in sorted(importers.items()):
        if library not in libraries:
            yield f"{library} is imported but not declared"
        if len(modules) > 1:
            yield f"{library} has {len(modules)} doors: {', '.join(sorted(modules))}"
    together = set().union(*(importers[library] for library in ONE_DOOR))
    if len(together) > 1 and all(len(importers[library]) == 1 for library in ONE_DOOR):
        yield f"{' and '.join(ONE_DOOR)} have {len(together)} doors"


def circles(sources, imports):
    graph = defaultdict(set)
    for each in imports:
        if each.importer != FACE and each.target in sources and each.target != each.importer:
            graph[each.importer].add(each.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a circle: {' -> '.join(error.args[1])}"


def broken_laws(sources, *, packages=(), libraries):
    """Say every violation in ``sources``, which maps a module's name to its text."""
    imports = [*imports_of(sources, packages)]
    of_the_house = [each for each in imports if each.importer != FACE]
    said = [
        *against_the_layers(sources, of_the_house),
        *through_the_face(of_the_house),
        *side_by_side(of_the_house),
        *doors(imports, libraries),
        *circles(sources, of_the_house),
    ]
    return list(dict.fromkeys(said))


def house():
    """Give every module of the three packages, and which of them are packages."""
    sources, packages = {}, set()
    for name, root in ROOTS.items():
        for file in sorted((root / name).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
                packages.add(".".join(parts))
            sources[".".join(parts)] = file.read_text(encoding="utf-8")
    return sources, packages


def declared_libraries():
    """Give the import names of what pyproject.toml lists for those who run the house."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    names = (
        re.match(r"[A-Za-z0-9_-]+", each)[0].lower()
        for each in (
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["schema"],
        )
    )
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_the_house_keeps_its_laws():
    sources, packages = house()

    said = broken_laws(sources, packages=packages, libraries=declared_libraries())

    assert said == []


def test_the_whole_house_was_read():
    sources, _ = house()

    assert set(ROOTS) <= {name.partition(".")[0] for name in sources}
    assert "kvstate.errors" in sources


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        pytest.param(
            {"kvstate.codec": "from kvstate.store import Store"},
            "kvstate.codec:1 imports kvstate.store from above",
            id="an import from above",
        ),
        pytest.param(
            {"kvstate.names": "if TYPE_CHECKING:\n    import kvstate.engine.lmdb"},
            "kvstate.names:2 imports kvstate.engine.lmdb from above",
            id="an import from above for types only",
        ),
        pytest.param(
            {"kvstate.state": "def f():\n    from .remote import connect"},
            "kvstate.state:2 imports kvstate.remote from above",
            id="a relative import from above, inside a function",
        ),
        pytest.param(
            {"kvstate.clock": "importlib.import_module('kvstate.cli')"},
            "kvstate.clock:1 imports kvstate.cli from above",
            id="an import from above by name",
        ),
        pytest.param(
            {"kvstate.store": "from kvstatefs.tree import Tree"},
            "kvstate.store:1 imports kvstatefs.tree from above",
            id="the store imports the mount",
        ),
        pytest.param(
            {"kvstated.server": "from kvstate import StateError"},
            "kvstated.server:1 imports through the face",
            id="an import through the face",
        ),
        pytest.param(
            {"kvstate.artifacts": "from . import blobs"},
            "kvstate.artifacts:1 imports through the face",
            id="a relative import through the face",
        ),
        pytest.param(
            {"kvstate.store": "import kvstate"},
            "kvstate.store:1 imports through the face",
            id="the whole face",
        ),
        pytest.param(
            {"kvstated.supervisor": "import kvstatefs.main"},
            "kvstated.supervisor:1 imports kvstatefs: the two stand side by side",
            id="the daemon imports the mount",
        ),
        pytest.param(
            {"kvstatefs.tree": "from kvstated import server"},
            "kvstatefs.tree:1 imports kvstated: the two stand side by side",
            id="the mount imports the daemon",
        ),
        pytest.param(
            {"kvstate.engine.lmdb": "import lmdb", "kvstate.check": "from lmdb import Error"},
            "lmdb has 2 doors: kvstate.check, kvstate.engine.lmdb",
            id="a second door of a library",
        ),
        pytest.param(
            {"kvstate.codec": "import cbor2", "kvstate.blobs": "import xxhash"},
            "cbor2 and xxhash have 2 doors",
            id="two libraries that share a door",
        ),
        pytest.param(
            {"kvstate.codec": "import orjson"},
            "orjson is imported but not declared",
            id="a library that pyproject.toml does not name",
        ),
        pytest.param(
            {
                "kvstate.lifecycle": "from kvstate.check import Report",
                "kvstate.check": "from kvstate.lifecycle import plan",
            },
            "a circle: kvstate.lifecycle -> kvstate.check -> kvstate.lifecycle",
            id="a circle on one layer",
        ),
        pytest.param(
            {"kvstate.utilities": ""},
            "kvstate.utilities stands on no layer",
            id="a module without a place",
        ),
    ],
)
def test_a_planted_violation_is_found(sources, said):
    assert broken_laws(sources, libraries={"lmdb", "cbor2", "xxhash"}) == [said]
