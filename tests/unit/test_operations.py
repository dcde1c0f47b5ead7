from __future__ import annotations

from pathlib import Path

import pytest

from kvstate.errors import InvalidValue, StateError
from kvstate.operations import OPERATIONS, Argument, Check, as_markdown
from kvstated.session import Session

PROTOCOL_PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def all_errors(kind=StateError):
    yield kind
    for child in kind.__subclasses__():
        yield from all_errors(child)


def test_the_protocol_page_holds_the_table():
    page = PROTOCOL_PAGE.read_text()

    table = page.split("<!-- operations -->\n")[1].split("<!-- /operations -->")[0]

    assert table == as_markdown()


def test_the_protocol_page_names_every_error_code():
    page = PROTOCOL_PAGE.read_text()

    missing = [error.code for error in all_errors() if f"| `{error.code}` |" not in page]

    assert missing == []


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_the_server_has_a_handler_that_takes_the_arguments_of(operation):
    code = getattr(Session, "_" + operation.name).__code__

    taken = code.co_varnames[1 : code.co_argcount]

    assert taken == tuple(argument.name for argument in operation.arguments)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_may_be_left_out_stands_at_the_end_of(operation):
    optional = [argument.optional for argument in operation.arguments]

    assert optional == sorted(optional)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("int", "1"),
        ("int", True),
        ("int", None),
        ("number", "1"),
        ("number", False),
        ("bool?", 1),
        ("bytes", "text"),
        ("mapping?", []),
        ("names", "abc"),
        ("text", b"abc"),
    ],
)
def test_an_argument_of_another_kind_is_refused(kind, given):
    with pytest.raises(InvalidValue, match="kind"):
        Argument("it", kind).check(given)


@pytest.mark.parametrize(
    ("kind", "given"),
    [("int", 5), ("number", 0.5), ("bool?", None), ("name", 7), ("value", None), ("names", ["a"])],
)
def test_an_argument_of_its_kind_is_taken(kind, given):
    Argument("it", kind).check(given)


@pytest.mark.parametrize("given", [[], ["ns"], ["ns", "key", 7, "more"]])
def test_too_few_and_too_many_arguments_are_refused(given):
    with pytest.raises(InvalidValue, match="delete"):
        Check(OPERATIONS["delete"])(given)


def test_optional_arguments_may_be_left_out_but_not_be_of_another_kind():
    check = Check(OPERATIONS["delete"])

    check(["ns", "key"])

    with pytest.raises(InvalidValue, match="if_revision"):
        check(["ns", "key", "latest"])
