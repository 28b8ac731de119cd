"""The flags of commands that answer questions about many pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from anygpt.errors import AnyGPTError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VolumeFlags:
    """Which of the input, and how much at once; a group of flags.

    Args:
        image_folder: Where the paths of pictures in a file start from; without it the current folder.
        num_chunks: Make so many parts of the input, each for a command of its own.
        chunk_idx: The part to do, from 0.
        batch_size: Answers made together.
        workers: Number of processes, each with the model and one thread on a CPU; without it one for each GPU, or none.
        seed: The same seed gives the same answers.
    """

    image_folder: Path | None = None
    num_chunks: int = 1
    chunk_idx: int = 0
    batch_size: int = 16
    workers: int | None = None
    seed: int | None = None

    def check(self) -> None:
        """Raise AnyGPTError for flags that can't be meant."""
        for flag, number in (
            ("--batch-size", self.batch_size),
            ("--workers", self.workers),
            ("--num-chunks", self.num_chunks),
        ):
            if number is not None and number < 1:
                raise AnyGPTError(f"{flag} is {number}, expected at least 1")
        if not 0 <= self.chunk_idx < self.num_chunks:
            last = self.num_chunks - 1
            raise AnyGPTError(f"--chunk-idx is {self.chunk_idx}, expected 0 to {last}, one less than --num-chunks")

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Part `chunk_idx` of `num_chunks` of the input, all but the last equally long."""
        size = -(-len(items) // self.num_chunks)
        return items[self.chunk_idx * size : (self.chunk_idx + 1) * size]


ALL_AT_ONCE = VolumeFlags()
"""What a command gets when none of these is given."""
