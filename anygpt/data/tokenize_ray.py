"""Shards on a Ray cluster: encoders as actors, each with a shard of its own, fed by decoding tasks.

An encoder reads the rows of its shard, sends batches out to be loaded on any CPU, encodes those that have arrived in
their order, and writes its part of the output folder, which all machines share. So nothing waits for the driver, and
nothing is lost with it: the progress of a shard is in its files. Ray starts an encoder that died anew, and the shard
goes on from its last whole batch.
"""

import collections
import dataclasses
import functools
import logging
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from anygpt.data.media_manifest import Batch
from anygpt.data.tokenize import Medium, Tokenized, load_media_list, tokenize_ahead
from anygpt.data.tokenize_shards import Shard, ShardFolder, ShardRecord, ShardWork
from anygpt.errors import AnyGPTError
from anygpt.modality import ModalitySpec

KNOCK_S = 10.0
_RESTARTS = 10
"""Of an encoder: one that dies again and again has another reason than a lost machine."""


def ray_engine(
    work: ShardWork, shards: Sequence[Shard], workers: int | None, *, address: str | None = None
) -> Generator[ShardRecord, None, None]:
    """Make shards with so many encoders on the cluster at `address`, or on one of this machine's own.

    Without `workers` there are as many as the cluster has room for, and here one for each device. Encoders have a GPU
    each where `work` is for GPUs, else a CPU. Records come in the order of the shards. Raises AnyGPTError without Ray,
    and where the cluster can't be reached or has too little for one encoder and its loader.
    """
    ray = _connect(address, workers or len(work.setup.devices))
    try:
        per_encoder = {"num_cpus": 1, "num_gpus": 1 if work.setup.devices[0].startswith("cuda") else 0}
        have = ray.cluster_resources()
        # Each encoder needs a CPU beside its own for loading, or it would wait for ever.
        fit = min([int(have.get("CPU", 0)) // 2, *([int(have.get("GPU", 0))] if per_encoder["num_gpus"] else [])])
        if fit < 1:
            got = f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
            raise AnyGPTError(f"the Ray cluster has {got}; an encoder needs two CPUs, and with --device cuda a GPU")
        encoder = ray.remote(max_restarts=_RESTARTS, max_task_retries=_RESTARTS, **per_encoder)(Encoder)
        work, shards = _absolute(work), [dataclasses.replace(shard, url=_absolute_path(shard.url)) for shard in shards]
        actors = [encoder.remote(work) for _ in range(min(workers or fit, fit, len(shards)))]
        yield from _in_order(ray, actors, shards)
    finally:
        ray.shutdown()


class Encoder:
    """Makes shards one after the other; an actor."""

    def __init__(self, work: ShardWork) -> None:
        torch.set_num_threads(1)
        self._work = work
        self._tokenizer = work.setup.load("cuda:0" if work.setup.devices[0].startswith("cuda") else "cpu")

    def make(self, shard: Shard) -> ShardRecord | str:
        """The record, or what the user has to mend."""
        try:
            return self._work.make(shard, tokenize=self._tokenize)
        except AnyGPTError as error:
            return str(getattr(error, "cause", error))  # Ray wraps what a loader raised, with its traceback

    def _tokenize(self, batches: Iterator[Batch]) -> Iterator[Tokenized]:
        import ray

        load = ray.remote(num_cpus=1)(load_media_list)

        def start(spec: ModalitySpec, media: list[Medium]) -> Callable[[], list[Any]]:
            return functools.partial(ray.get, load.remote(spec, media))

        return tokenize_ahead(self._tokenizer, batches, start=start)


def _absolute(work: ShardWork) -> ShardWork:
    """The same work from any working folder."""
    setup = work.setup
    field = f"{setup.modality}_tokenizer"
    paths = dataclasses.replace(setup.paths, **{field: _absolute_path(getattr(setup.paths, field))})
    folder = ShardFolder(work.folder.out.absolute(), work.folder.format)
    return dataclasses.replace(work, setup=dataclasses.replace(setup, paths=paths), folder=folder)


def _absolute_path(path: str) -> str:
    """A path here as an absolute one; a URL or a hub's name as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _in_order(ray: Any, actors: Sequence[Any], shards: Sequence[Shard]) -> Generator[ShardRecord, None, None]:
    """Keep every actor busy; yield the records in order."""
    waiting = collections.deque(enumerate(shards))
    idle, running = list(actors), dict[Any, tuple[int, Any]]()
    ready: dict[int, ShardRecord] = {}
    due = 0
    while waiting or running:
        while waiting and idle:
            number, shard = waiting.popleft()
            actor = idle.pop()
            running[actor.make.remote(shard)] = (number, actor)
        for result in ray.wait(list(running), num_returns=1)[0]:
            number, actor = running.pop(result)
            try:
                record = ray.get(result)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                message = f"{shards[number].source}: the encoder ended ({reason}); the same command goes on from there"
                raise AnyGPTError(message) from None
            if isinstance(record, str):
                raise AnyGPTError(record)
            ready[number] = record
            idle.append(actor)
        while due in ready:
            yield ready.pop(due)
            due += 1


def _connect(address: str | None, workers: int) -> Any:
    """The module `ray`, connected."""
    try:
        import ray
    except ImportError:
        raise AnyGPTError("--engine ray needs Ray; install it with: pip install 'anygpt[ray]'") from None
    if ray.is_initialized():
        raise AnyGPTError("Ray is in use in this process already; call ray.shutdown() first")
    if address is not None:
        _knock(address)
    cluster = {"address": address} if address else {"num_cpus": 2 * workers, "include_dashboard": False}
    try:
        ray.init(**cluster, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AnyGPTError(f"{_unreached(address) if address else 'Ray does not start here'} ({reason})") from None
    return ray


def _knock(address: str) -> None:
    """Raise AnyGPTError where nobody listens at `host:port` or `ray://host:port`: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise AnyGPTError(f"{_unreached(address)} ({error.strerror or error})") from None


def _unreached(address: str) -> str:
    return f"--ray-address is '{address}': no cluster is reached there"
