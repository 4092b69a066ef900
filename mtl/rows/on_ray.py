"""A corpus on a Ray cluster. Ray Data hands out files to encoder actors, and hands a lost actor's file to another.

A file is the unit of all of it: of work, so that what is written does not depend on the cluster; and of loss, since
its output appears only when it is whole. Nothing but file names and counts goes through Ray itself.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mtl.errors import InputError, MtlError, extra, one_line
from mtl.kernels.cores import cores
from mtl.rows.uris import Source
from mtl.rows.work import Done, Job

PATIENCE = 5.0  # seconds that a cluster has to answer


def import_ray() -> Any:
    """Ray, which is an extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError(f"an address needs Ray, which is not installed; {extra('ray')}") from None
    return ray


def check_address(address: str) -> None:
    """That something answers at an address of the form host:port. Ray itself would try for a minute or more.

    Raises:
        InputError: nothing does, or it is no address of this kind.
    """
    if address == "auto":  # what a cluster that was killed has left behind names one that is gone
        from ray._private.utils import read_ray_address

        address = os.environ.get("RAY_ADDRESS") or read_ray_address() or "local"
    if address == "local":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise InputError(f"address is {address!r}; expected auto, local, or host:port, as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}") from None


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; a connection that was there before is used, and kept.

    Raises:
        InputError: there is no cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent elsewhere, unless the user wants it
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is said once, by us
    own: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **(own if address == "local" else {}))
    except (ConnectionError, RuntimeError, ValueError) as error:
        token = "" if "RAY_AUTH_MODE" in os.environ else "; if it asks for a token, set RAY_AUTH_MODE=token"
        raise InputError(f"no Ray cluster can be reached at {address!r}: {one_line(error)}{token}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def divide(machines: Sequence[int], actors: int | None, threads: int | None) -> tuple[int, int]:
    """How many actors, with how many threads each, for machines with so many CPUs.

    What is given is kept; by default, an actor has the threads of the smallest machine, and there are as many as fit.

    Raises:
        InputError: not all of them fit.
    """
    if threads is None:
        threads = min(machines)
        while actors is not None and threads > 1 and fitting(machines, threads) < actors:
            threads -= 1
    room = fitting(machines, threads)
    if (actors or 1) > room:
        given = f"{actors or 1} actors of {threads} threads"
        raise InputError(f"{given} do not fit: the cluster has machines of {', '.join(map(str, machines))} CPUs")
    return actors or room, threads


def fitting(machines: Sequence[int], threads: int) -> int:
    """How many actors of so many threads there is room for."""
    return sum(cpus // threads for cpus in machines)


class Actor:
    """An encoder on some machine of the cluster. It loads the model once."""

    def __init__(self, job: Job, sources: Sequence[Source], threads: int) -> None:
        self.job, self.sources, self.threads = job, sources, threads
        self.worker: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One file, by its place in the list; what goes wrong comes back as a row, which Ray will not try again."""
        try:
            if self.worker is None:
                torch.set_num_threads(self.threads)
                self.worker = self.job.load()
            done, error = self.worker.embed(self.sources[int(batch["file"][0])], self.threads), ""
        except MtlError as problem:
            done, error = Done(0, 0, 0, 0, 0.0, 0.0), str(problem)
        return {"error": [error], **{name: [value] for name, value in dataclasses.asdict(done).items()}}


def encoded(ray: Any, job: Job, sources: Sequence[Source], actors: int, threads: int) -> Iterator[dict[str, Any]]:
    """What the actors say of each file, as they finish; Ray begins the file of an actor that dies again.

    Raises:
        InputError: the cluster itself failed.
    """
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    files = ray.data.from_items([{"file": i} for i in range(len(sources))], override_num_blocks=len(sources))
    rows = files.map_batches(
        Actor,
        fn_constructor_args=(job, list(sources), threads),
        batch_size=1,
        num_cpus=threads,
        num_gpus=1 if job.device.startswith("cuda") else None,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
    )
    try:
        yield from rows.iter_rows()
    except ray.exceptions.RayError as error:
        raise InputError(f"the Ray cluster failed: {one_line(error)}; the same command does what is missing") from None


def on_ray(
    job: Job,
    sources: Sequence[Source],
    address: str,
    actors: int | None,
    threads: int | None,
    seen: Callable[[int], object],
) -> tuple[list[Done], int]:
    """Embed the files on a cluster: what each came to, and the number of actors.

    Raises:
        InputError: there is no cluster, or no room in it; or as ``Worker.embed``. The other files that are under
            way are given up, and what is finished stays.
    """
    with connected(address) as ray:
        machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        actors, threads = divide([cpus for cpus in machines if cpus], actors, threads)
        actors, done = min(actors, len(sources)), []
        for row in encoded(ray, job, sources, actors, threads):
            if error := row.pop("error"):
                raise InputError(error)
            done.append(Done(**row))
            seen(done[-1].rows)
        return done, actors


def tasks(
    ray: Any, function: Callable[..., Any], items: Sequence[Any], shared: tuple[Any, ...], threads: int
) -> Iterator[Any]:
    """What a function gives of each item with what all of them share, in any order; Ray begins lost ones again.

    Raises:
        InputError: the cluster itself failed.
    """
    remote, given = ray.remote(num_cpus=threads)(function), [ray.put(value) for value in shared]
    pending = [remote.remote(item, *given) for item in items]
    try:
        while pending:
            done, pending = ray.wait(pending)
            yield from ray.get(done)
    except ray.exceptions.RayError as error:
        raise InputError(f"the Ray cluster failed: {one_line(error)}") from None
