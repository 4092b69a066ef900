"""mtl models"""

from __future__ import annotations

import click


@click.command()
@click.option("--families", is_flag=True, help="The kinds of encoder that are read, how that was checked, and models.")
def models(families: bool) -> None:
    """The models that --model knows by name; it also takes any folder, and any org/name[@revision] on the hub."""
    from mtl.checkpoints.listing import known_families, pinned_models

    click.echo(known_families() if families else pinned_models())
