"""mtl card, mtl push, mtl export"""

from __future__ import annotations

from pathlib import Path

import click

from mtl.cli.options import model_option, only_with, overwrite_option
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

    only_with("--output", output, "overwrite")
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
@click.option("--onnx", is_flag=True, help="With ONNX graphs, as mtl export writes them.")
def push(
    model: str, repository: str, private: bool, create_pr: bool, revision: str | None, message: str, onnx: bool
) -> None:
    """Put MODEL, a run's or a model's folder, on the Hugging Face hub, in one commit.

    Only the model's own files go there: no checkpoint, no data. The token is that of `hf auth login`, or HF_TOKEN.
    """
    from mtl.checkpoints.publish import PushOptions, push_saved
    from mtl.checkpoints.publish import push as to_hub

    options: PushOptions = {
        "private": private, "create_pr": create_pr, "revision": revision, "commit_message": message,
    }  # fmt: skip
    if onnx:
        click.echo(push_saved(lambda folder: exported(model, folder, None), repository, options))
        return
    address, others = to_hub(model, repository, **options)
    if others:
        click.echo(f"note: not pushed, since they are no part of the model: {', '.join(others[:10])}", err=True)
    click.echo(address)


@click.command()
@model_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to write, a new one.")
@click.option("--task", help="Leave out all heads but this task's; its output is called logits.")
def export(model: str, output: Path, task: str | None) -> None:
    """Write a model's folder with ONNX graphs in it, for transformers.js, fastembed, onnxruntime and others.

    onnx/model.onnx gives the model's own vectors and logits, which is tried before it is there; model_quantized.onnx is
    a quarter of its size, and near them. Both take padded batches of any size.
    """
    exported(model, output, task)


def exported(model: str, output: Path, task: str | None) -> None:
    from mtl.export.onnx import export_onnx

    found = export_onnx(model, output, task)
    for path, said in (
        (found.graph, f"at most {found.difference:.1e} from the model's own values over {found.texts} texts"),
        (found.quantized, f"cosines of its embeddings with the model's own at least {found.cosine:.4f}"),
    ):
        size = sum(x.stat().st_size for x in path.parent.glob(f"{path.name}*"))
        click.echo(f"{path.parent.name}/{path.name}, {size / 1e6:.1f} MB: {', '.join(found.outputs)}; {said}", err=True)
