"""`dtrain profiles [NAME]`: the machines that `--profile` can name."""

from __future__ import annotations

import json

import click

from dtrain.cli.options import json_option


@click.command("profiles")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the machines dtrain knows by name; with NAME, one in full with the source of each figure.

    \b
    dtrain profiles
    dtrain profiles h100x8x4
    dtrain profiles my_machine.yaml
    dtrain profiles --json | jq '.profiles[] | {name, memory_gib}'
    """
    from dtrain.hardware.profiles import profile_names, resolve_profile
    from dtrain.show.console import console_for
    from dtrain.show.profiles import print_profile, print_profiles, profile_json

    profiles = [resolve_profile(one) for one in ([name] if name else profile_names())]
    if as_json:
        document = {"schema_version": 1, "profiles": [profile_json(profile) for profile in profiles]}
        click.echo(json.dumps(document, indent=2))
    elif name:
        print_profile(profiles[0], console_for(False))
    else:
        print_profiles(profiles, console_for(False))
