"""Functions that tests send to worker processes, which import them by name."""

import os
import time
from collections.abc import Callable

from anygpt.errors import AnyGPTError


def set_up(number: int) -> Callable[[int], tuple[int, int]]:
    """Answers a task with (twice the task, worker number); small ones take longest."""

    def double(task: int) -> tuple[int, int]:
        time.sleep(0.02 if task < 3 else 0)
        return 2 * task, number

    return double


def set_up_trouble(number: int) -> Callable[[str], str]:
    """Does what the task says."""

    def meet(trouble: str) -> str:
        if trouble == "mistake":
            raise AnyGPTError("a mistake of the user")
        if trouble == "bug":
            raise KeyError("a bug")
        if trouble == "death":
            os._exit(7)
        return trouble

    return meet
