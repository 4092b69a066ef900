"""The command line. One file a command, or two that go together."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from mtl.cli import check, embed, evaluate, index, inspect, mine, models, predict, publish, rerank, serve, sweep, train
from mtl.errors import MtlError, one_line

INTERRUPTED = 130  # the exit code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mtl")
@click.option("--debug", is_flag=True, help="Show the traceback of an error that nobody foresaw.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """A sentence transformer and multi-task model in plain PyTorch."""
    context.ensure_object(dict)["debug"] = debug
    logging.basicConfig(format="%(message)s")


for command in (
    embed.embed,
    embed.embed_corpus,
    train.train,
    sweep.sweep,
    predict.predict,
    rerank.rerank,
    evaluate.evaluate,
    inspect.inspect,
    check.check,
    models.models,
    serve.serve,
    publish.card,
    publish.push,
    publish.export,
    index.index,
    index.search,
    mine.mine,
):
    cli.add_command(command)


def discard_output() -> None:
    """Have what is still to be written to standard output go nowhere, so that Python does not fail on it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(arguments: Sequence[str] | None) -> int:
    """The command line, as an exit code."""
    told: dict[str, Any] = {}
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for what a terminal has no letters for
        cli.main(arguments, prog_name="mtl", standalone_mode=False, obj=told)
        if sys.stdout:
            sys.stdout.flush()
        return 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MtlError as error:
        click.echo("error: " + str(error).replace("\n", "\\n"), err=True)
    except click.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:  # the reader of a pipe has seen enough
        discard_output()
    except OSError as error:
        click.echo(f"error: {error.filename or 'standard output'}: {one_line(error)}", err=True)
        discard_output()
    except Exception as error:
        if told.get("debug"):
            traceback.print_exc()
        kind = type(error).__name__
        hint = "please report it, with what `mtl --debug ...` shows"
        click.echo(f"error: {kind}: {one_line(error)}; this was not foreseen: {hint}", err=True)
    return 1


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit codes: 0, 1 (failed), 2 (usage), 130 (interrupted); an error is one line."""
    try:
        sys.exit(run(arguments))
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt, OSError):
            click.echo("interrupted", err=True)
        if arguments is None:  # the process is ours, and waits for no thread that still reads or computes
            os._exit(INTERRUPTED)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
