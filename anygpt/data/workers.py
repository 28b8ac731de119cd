"""Work spread over processes, results in order."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from anygpt.devices import find_device
from anygpt.errors import AnyGPTError

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 4
"""A slow task holds the finished ones behind it in memory, up to so many for each worker."""


def ordered_map(
    setup: Callable[[int], Callable[[Task], Result]], tasks: Iterable[Task], *, workers: int
) -> Generator[Result, None, None]:
    """The result of every task, in the order of the tasks, computed by `workers` fresh processes.

    Each process calls `setup(number)` once, which may load a model, and the function that it returns for each task;
    `setup`, tasks and results must pickle. An AnyGPTError in a process is raised here; any other exception, or a
    process that dies, ends the map as well. Closing the iterator ends the processes; so does the death of this one.
    """
    # Not a multiprocessing.Pool or an executor: their workers wait for ever on a queue when the parent is killed,
    # and a Pool waits for ever when a worker is. A pipe that only two processes hold breaks when either of them ends.
    context = multiprocessing.get_context("spawn")
    pool = [_Worker(context, setup, number) for number in range(workers)]
    try:
        idle, busy = list(pool), dict[Connection, tuple[_Worker, int]]()
        ready: dict[int, Result] = {}
        numbered, sent, due = iter(tasks), 0, 0
        is_more = True
        while True:
            while is_more and idle and sent - due < AHEAD * workers:
                try:
                    task = next(numbered)
                except StopIteration:
                    is_more = False
                    break
                worker = idle.pop()
                worker.send(task)
                busy[worker.connection] = (worker, sent)
                sent += 1
            if due in ready:
                yield ready.pop(due)
                due += 1
            elif busy:
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection), connection
                    worker, number = busy.pop(connection)
                    ready[number] = worker.receive()
                    idle.append(worker)
            else:
                return
    finally:
        for worker in pool:
            worker.stop()


def map_here(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
    """What `ordered_map` does, without other processes."""
    yield from with_one_thread(map(function, tasks))


def with_one_thread(results: Iterable[Result]) -> Generator[Result, None, None]:
    """The items, computed while torch has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: the number of threads may change the last bits of a sum
    try:
        yield from results
    finally:
        torch.set_num_threads(threads)


def device_names(name: str) -> tuple[str, ...]:
    """The devices to share the work among: every GPU for "auto" and "cuda", where there are some.

    Raises AnyGPTError for a device that isn't here.
    """
    if find_device(name) == torch.device("cuda"):
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return ("cpu" if name == "auto" else name,)


class _Worker:
    """One process and this end of its pipe."""

    def __init__(self, context: Any, setup: Callable[[int], Callable[[Any], Any]], number: int) -> None:
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setup, number), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, task: Any) -> None:
        try:
            self.connection.send(task)
        except BrokenPipeError:
            self.receive()  # says why, where the process could still tell
            raise

    def receive(self) -> Any:
        """The result of the task that was sent last. Raises what the process met."""
        try:
            outcome, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise AnyGPTError(
                f"a worker process ended with exit code {self._process.exitcode}, perhaps for want of memory; "
                "the same command goes on where it stopped, with fewer --workers if need be"
            ) from None
        if outcome == "mistake":
            raise AnyGPTError(value)
        if outcome == "failure":
            raise RuntimeError(f"in a worker process:\n{value}")
        return value

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, setup: Callable[[int], Callable[[Any], Any]], number: int) -> None:
    """What a worker process does: answer tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    try:
        function = setup(number)
        while True:
            connection.send(("result", function(connection.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except AnyGPTError as error:
        connection.send(("mistake", str(error)))
    except Exception:  # whatever it is, the parent raises it
        connection.send(("failure", traceback.format_exc()))
