"""mtl card, mtl push"""

from __future__ import annotations

from pathlib import Path

import click

from mtl.cli.options import overwrite_option
from mtl.disk import atomic_write
from mtl.errors import InputError


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write; without it, it is shown.")
@overwrite_option
def card(model: str, output: Path | None, overwrite: bool) -> None:
    """The hub's page of MODEL, a run's or a model's folder: metadata, use, metrics, recipe.

    A saved model has it as README.md already.
    """
    from mtl.checkpoints.fetch import fetch
    from mtl.checkpoints.publish import page

    if overwrite and output is None:
        raise click.UsageError("--overwrite goes with --output")
    if output and output.exists() and not overwrite:
        raise InputError(f"{output} exists; --overwrite replaces it, or choose another name")
    text = page(fetch(model))
    if output is None:
        click.echo(text, nl=False)
        return
    with atomic_write(output, InputError) as partial:
        partial.write_text(text, encoding="utf-8")
    click.echo(f"wrote {output}", err=True)


@click.command()
@click.argument("model")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Nobody else sees it.")
@click.option("--create-pr", is_flag=True, help="Propose it in a pull request.")
@click.option("--revision", help="The branch to commit to, made if need be.  [default: main]")
@click.option("--message", default="Push a model with mtl", show_default=True, help="What the commit says.")
def push(model: str, repository: str, private: bool, create_pr: bool, revision: str | None, message: str) -> None:
    """Put MODEL, a run's or a model's folder, on the Hugging Face hub, in one commit.

    Only the model's own files go there: no checkpoint, no data. The token is that of `hf auth login`, or HF_TOKEN.
    """
    from mtl.checkpoints.publish import push as to_hub

    address, others = to_hub(
        model, repository, private=private, create_pr=create_pr, revision=revision, commit_message=message
    )
    if others:
        click.echo(f"note: not pushed, since they are no part of the model: {', '.join(others[:10])}", err=True)
    click.echo(address)
