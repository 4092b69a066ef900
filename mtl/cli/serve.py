"""mtl serve"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtl.cli.allocator import share_memory
from mtl.cli.options import (
    computing_options,
    echo_json,
    model_option,
    not_both,
    said_precision,
    settings,
)
from mtl.errors import InputError, extra, one_line

if TYPE_CHECKING:
    from mtl.encode.precision import Precision

EXTRA = "mtl serve needs {}; " + extra("serve")


@click.command()
@model_option
@click.option("--name", help="What the model is called in answers.  [default: its own name]")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--index", "folder", type=click.Path(path_type=Path), help="An index that POST /search searches.")
@click.option("--api-keys", type=click.Path(path_type=Path), help="A file of keys, one a line; a client sends one.")
@click.option("--without-key", is_flag=True, help="Let anybody in, at other addresses than this machine's own too.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="A web page's origin that may use the server, or *.")
@click.option("--truncate", is_flag=True, help="Cut texts over the limit, unless a request says otherwise.")
@click.option("--max-texts", type=click.IntRange(1), default=2048, show_default=True, help="Texts of a request.")
@click.option("--max-bytes", type=click.IntRange(1), default=8 << 20, show_default=True, help="Bytes of a request.")
@click.option(
    "--max-queued-tokens", type=click.IntRange(1), default=1 << 18, show_default=True, help="Tokens that may wait."
)
@click.option("--max-requests", type=click.IntRange(1), default=512, show_default=True, help="Requests that may wait.")
@click.option("--timeout", type=click.IntRange(1), default=120, show_default=True, help="Seconds until an answer.")
@click.option("--log-json", is_flag=True, help="A line of JSON for each request, on standard output.")
@computing_options
def serve(
    model: str,
    name: str | None,
    host: str,
    port: int,
    folder: Path | None,
    api_keys: Path | None,
    without_key: bool,
    cors: tuple[str, ...],
    truncate: bool,
    max_texts: int,
    max_bytes: int,
    max_queued_tokens: int,
    max_requests: int,
    timeout: int,
    log_json: bool,
    device: str,
    precision: Precision,
    int8_least_cosine: float,
    threads: int | None,
) -> None:
    """Answer requests over HTTP, as text-embeddings-inference and OpenAI's API do, until SIGTERM.

    The same text has the same bytes as from `mtl embed`, whatever else is asked for at the same time.
    """
    share_memory()
    not_both("api_keys", "without_key")
    try:
        from mtl.index.index import Index
        from mtl.serve.app import Service, read_keys
        from mtl.serve.contracts import Limits
        from mtl.serve.model import Served
        from mtl.serve.routes import application
        from mtl.serve.server import configured, is_loopback, listening, run
    except ModuleNotFoundError as error:
        raise InputError(EXTRA.format(error.name)) from None
    if not (is_loopback(host) or api_keys or without_key):
        raise InputError(f"{host} can be reached by others; give --api-keys FILE, or --without-key to let anybody in")
    try:
        keys = read_keys(api_keys.read_text(encoding="utf-8")) if api_keys else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{api_keys} cannot be read: {one_line(error)}") from None
    limits = Limits(
        texts=max_texts,
        body_bytes=max_bytes,
        queued_tokens=max_queued_tokens,
        requests=max_requests,
        answer_seconds=timeout,
    )
    at = listening(host, port)
    served = Served.load(model, name, device, precision, threads, int8_least_cosine)
    settings(model=model, device=device, precision=said_precision(served.encoder), threads=served.engine.threads,
             dim=served.dim, max_length=served.limit, tasks=",".join(served.about()["tasks"]) or "none")  # fmt: skip
    index = Index.open(folder, served.encoder) if folder else None
    service = Service(served, limits, keys, truncate, print_record if log_json else None, index)

    def ready() -> None:
        address = f"[{host}]" if ":" in host else host
        click.echo(f"serving {served.name} at http://{address}:{at.getsockname()[1]}", err=True)

    run(configured(application(service, cors), service), at, ready)
    click.echo("stopped: every accepted request was answered", err=True)


def print_record(record: dict[str, Any]) -> None:
    with suppress(OSError):  # nobody reads the log any more
        echo_json(record)
