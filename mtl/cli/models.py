"""mtl models"""

from __future__ import annotations

import click


@click.command()
def models() -> None:
    """The models that --model knows by name; it also takes any folder, and any org/name[@revision] on the hub."""
    from mtl.checkpoints.listing import pinned_models

    click.echo(pinned_models())
