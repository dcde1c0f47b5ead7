"""Commands on settings: config show, config validate, completion."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kvstate.cli.arguments import parser
from kvstate.cli.doors import store_path
from kvstate.cli.exits import DONE
from kvstate.cli.output import print_json, print_line
from kvstate.config import load
from kvstate.toml import as_toml, spoken, toml_value

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["completion", "show", "validate"]


def show(options: Namespace) -> int:
    """Print every setting as a settings file would have it, and where it comes from."""
    config = load(store_path(options), options.file, os.environ)
    sections = spoken(config.as_dict())
    more = {key: spoken(config.rules[key]) for key in ("rules", "tenants") if key in config.rules}
    if options.json:
        print_json({**sections, **more})
        return DONE
    for section, settings in sections.items():
        print_line(f"[{section}]")
        for key, value in settings.items():
            shown = f'"{value:04o}"' if key == "socket_mode" else toml_value(value)
            print_line(f"{key} = {shown}  # {config.origins[f'{section}.{key}']}")
        print_line("")
    if "rules" in more:
        print_line(as_toml({"lifecycle": {"rules": more["rules"]}}) + "\n")
    if "tenants" in more:
        print_line(as_toml({"tenants": more["tenants"]}))
    return DONE


def validate(options: Namespace) -> int:
    """Check the settings; what is wrong is an error that names the line."""
    load(store_path(options), options.file, os.environ)
    return DONE


def completion(options: Namespace) -> int:
    """Print a completion script."""
    import shtab  # noqa: PLC0415  (its one door)

    print_line(shtab.complete(parser(), options.shell))
    return DONE
