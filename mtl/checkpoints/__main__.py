"""python -m weights list | fetch | verify"""

from __future__ import annotations

import logging

import click

from mtl.checkpoints.fetch import CLONE, check, fetch, fetch_pinned, find, manifest, on_this_machine
from mtl.checkpoints.listing import pinned_models
from mtl.errors import MtlError, WeightsError


@click.group(help="The files of pretrained models: list, fetch and verify them.")
def cli() -> None:
    logging.basicConfig(format="%(message)s")


@cli.command("list", help="The pinned checkpoints and where they are.")
def list_models() -> None:
    click.echo(pinned_models())


@cli.command("fetch", help="Fetch and verify a model; print its folder. A clone keeps what it downloads in weights/.")
@click.argument("name")
def fetch_model(name: str) -> None:
    entry = find(name)
    click.echo(fetch_pinned(entry, CLONE if (CLONE / "README.md").is_file() else None) if entry else fetch(name))


@cli.command(help="Hash models' files again, stamps or no; by default, those of all models on this machine.")
@click.argument("names", nargs=-1)
def verify(names: tuple[str, ...]) -> None:
    entries = []
    for name in names or [name for name, entry in manifest().items() if on_this_machine(entry)]:
        entry = find(name)
        if entry is None:
            raise WeightsError(f"no hashes are known for {name!r}; known: {', '.join(manifest())}")
        entries.append(entry)
    wrong = 0
    for entry in entries:
        folder = on_this_machine(entry)
        if folder is None:
            raise WeightsError(f"{entry.name} is not on this machine; `python -m weights fetch {entry.name}`")
        for file, (size, sha256) in entry.files.items():
            try:
                check(folder / file, size, sha256, stamped=False)
                click.echo(f"ok       {entry.name}/{file}")
            except WeightsError as error:
                wrong += 1
                click.echo(f"differs  {entry.name}/{file}: {error}")
    if wrong:
        raise WeightsError(f"{wrong} files are not what they should be")


def main() -> None:
    """The command line; our own errors are one line on stderr and exit code 1."""
    try:
        cli.main(prog_name="python -m weights", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except (MtlError, click.Abort) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
