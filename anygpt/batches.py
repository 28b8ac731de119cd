"""Answers to many prompts. Their ids are drawn in the caller's thread, and what comes before and after happens beside
it: media of prompts are encoded in a second thread, some prompts ahead; in a third, answers are chosen among candidates
and their media decoded. torch lets other threads run while it computes.

Which answers share a batch is decided by their order alone, and not by which thread is done first: a seed gives the
same ids, however fast the threads are.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from anygpt.engine import Result, Task
from anygpt.errors import AnyGPTError
from anygpt.generation.loop import Answer, decode

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

T = TypeVar("T")
BACKLOG = 2
"""Answers may wait to be decoded, up to so many times the batch size; then the batch waits for them."""


@dataclass(frozen=True, eq=False)
class _Making:
    """A task that is being answered."""

    number: int
    """Its place among the tasks."""
    task: Task
    candidates: list[Answer]
    began: float


def prepare_and_run(
    model: "AnyGPT", makes: Iterable[Callable[[], Task | Result]], *, batch_size: int
) -> Generator[Result, None, None]:
    """As `run`, for what functions give, which are called in a thread of their own, up to `batch_size` ahead."""
    with closing(ahead(makes, batch_size)) as tasks:
        yield from run(model, tasks, batch_size=batch_size)


def run(model: "AnyGPT", tasks: Iterable[Task | Result], *, batch_size: int) -> Generator[Result, None, None]:
    """See `AnyGPT.run_tasks`. Closing the iterator ends its thread, once that is done with the answer it is at."""
    with _thread("decoding") as beside:
        yield from _run(model, tasks, batch_size, beside)


def ahead(makes: Iterable[Callable[[], T]], count: int) -> Generator[T, None, None]:
    """What functions give, in order; a thread calls them, up to `count` ahead of the one that is asked for.

    The functions themselves come from `makes` in the caller's thread. Closing the iterator ends the thread, as above.
    """
    with _thread("preparing") as beside:
        waiting: deque[Future[T]] = deque()
        for make in makes:
            waiting.append(beside.submit(make))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _thread(name: str) -> Iterator[ThreadPoolExecutor]:
    """One thread, begun when it is first needed. What it hasn't begun when the block ends it leaves undone."""
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _run(
    model: "AnyGPT", tasks: Iterable[Task | Result], batch_size: int, beside: ThreadPoolExecutor
) -> Iterator[Result]:
    ready: dict[int, Future[Result]] = {}
    making: dict[Answer, _Making] = {}
    places = threading.Semaphore(BACKLOG * batch_size)

    def answers() -> Iterator[Answer]:
        for number, task in enumerate(tasks):
            if isinstance(task, Result):
                ready[number] = _known(task)
                continue
            try:
                candidates = model.making(task)
            except AnyGPTError as error:
                ready[number] = _known(task.failed(error))
                continue
            making.update(dict.fromkeys(candidates, _Making(number, task, candidates, time.perf_counter())))
            yield from candidates

    def finished(made: _Making) -> Result:
        try:
            return model.result(made.task, model.chosen(made.task, made.candidates).ids, made.began)
        except AnyGPTError as error:
            return made.task.failed(error)
        finally:
            places.release()

    due = 0
    for answer, _ in decode(model.decoder, answers(), batch_size=batch_size):
        if answer.is_done:
            made = making.pop(answer)
            if not any(candidate in making for candidate in made.candidates):
                places.acquire()
                ready[made.number] = beside.submit(finished, made)
        while due in ready and ready[due].done():
            yield ready.pop(due).result()
            due += 1
    while due in ready:
        yield ready.pop(due).result()
        due += 1


def _known(result: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result)
    return future
