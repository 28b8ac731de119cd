"""A gallery in Markdown, as code hosts show it: what was asked, what came, where it failed; chosen by rule.

Hosts play no sounds within a page, so each is a spectrogram to look at and a link to an MP3.
"""

import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anygpt.evaluation.bench import Bench
from anygpt.evaluation.exhibits import Content, Exhibit, exhibit, judged_column, ranked
from anygpt.evaluation.run import Outcome
from anygpt.evaluation.sounds import log_mel, waveform
from anygpt.evaluation.tasks import Task
from anygpt.media import Audio, atomic_write, save_image
from anygpt.video import Video, save_video

BEST, WORST = 3, 3
_WIDTH_PX = 128
_SPECTROGRAM_PX = (192, 64)
_DYNAMIC_RANGE = 9.0
"""Natural units of power from the loudest point to black."""

_ABOUT = """\
What {model} makes of prompts that it never saw, made by one command: `{command}`.

Nothing here is picked by hand. Of the first {count} held-out cases of every task those {best} are shown on which the
answer scores best, and those {worst} on which it scores worst, the first ones where scores are equal; a task without
worse ones has none of the second kind. A score is the mean of a case's measures, which the report lists, in percent;
of error rates it is what is right. *Given* is a real medium and its text: of the two the model gets the one that
the task's title names first. *Reconstruction* is the real medium after its tokenizer, from the codes that the language
model sees: no answer can be better. Sounds open as MP3; the pictures beside them are their spectrograms,
time from left to right, low tones below."""


def write_gallery(
    folder: Path,
    summary: Mapping[str, Any],
    tasks: Sequence[Task],
    outcomes: Mapping[str, dict[str, Outcome]],
    bench: Bench,
) -> Path:
    """Write `index.md` and `media/` into `folder`, and return the page's path; earlier ones there are replaced.

    `outcomes` are those of the seed of `bench`.
    """
    shutil.rmtree(folder / "media", ignore_errors=True)
    counts = {len(outcome.scores) for each in outcomes.values() for outcome in each.values()}
    about = _ABOUT.format(
        model=summary["model"],
        command=summary["command"],
        count=max(counts, default=0),
        best=BEST,
        worst=WORST,
    )
    lines = ["# Gallery", "", about]
    for task in tasks:
        lines += _section(task, outcomes.get(task.name, {}), bench, _Media(folder, task.name))
    path = folder / "index.md"
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def best_and_worst(task: Task, outcome: Outcome) -> tuple[list[int], list[int]]:
    """The cases to show: those with the best scores, and of the others those with the worst, the first of equals."""
    order = ranked(task, outcome.scores)
    if not order:
        return [], []
    top = order[-1][1]
    # `ranked` is stable from the worst on; among the best the first come first as well.
    from_best = sorted(order, key=lambda pair: (abs(pair[1] - top), pair[0]))
    best = [index for index, _ in from_best[:BEST]]
    worst = [index for index, value in order if value != top and index not in best][:WORST]
    return best, worst


def _section(task: Task, outcomes: dict[str, Outcome], bench: Bench, media: "_Media") -> Iterator[str]:
    column = judged_column(task, outcomes)
    if column is None:
        return
    outcome = outcomes[column]
    case_of = task.cases(bench)
    yield from ("", f"## {task.title[:1].upper()}{task.title[1:]}")
    best, worst = best_and_worst(task, outcome)
    for title, indices in (("Best", best), ("Worst", worst)):
        if indices:
            yield from ("", f"{title}:", "")
            shown = [exhibit(task, bench, case_of(index), outcome, column) for index in indices]
            yield from _table(shown, media)


def _table(shown: Sequence[Exhibit], media: "_Media") -> Iterator[str]:
    has_rebuilt = any(each.rebuilt for each in shown)
    has_right = any(each.right for each in shown)
    titles = [
        "case",
        "given",
        *(["reconstruction"] if has_rebuilt else []),
        "answer",
        *(["right"] if has_right else []),
    ]
    yield f"| {' | '.join(titles)} | score |"
    yield "|---" * (len(titles) + 1) + "|"
    for each in shown:
        given = "<br>".join(f"*{label}:* {media.markdown(part)}" for label, part in each.asked)
        answer = _joined(each.answer, media) or "none"
        row = [str(each.index), given, *([_joined(each.rebuilt, media)] if has_rebuilt else []), answer]
        row += [_joined(each.right, media)] if has_right else []
        yield f"| {' | '.join(row)} | {100 * (each.value or 0.0):.0f} |"


def _joined(parts: Sequence[Content], media: "_Media") -> str:
    return "<br>".join(media.markdown(part) for part in parts)


class _Media:
    """Pictures and sounds of a task, as small files beside the page."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._count = 0

    def markdown(self, content: Content) -> str:
        """A part of a case within a table's cell."""
        if isinstance(content, str):
            return " ".join(content.replace("|", r"\|").replace("<", "&lt;").split())
        self._count += 1
        path = Path("media") / f"{self._name}-{self._count:02d}"
        if isinstance(content, Image.Image):
            save_image(self._folder / path.with_suffix(".jpg"), content, quality=90)
            return f'<img src="{path}.jpg" width="{_WIDTH_PX}" alt="a picture">'
        if isinstance(content, Video):
            save_video(self._folder / path.with_suffix(".gif"), content)
            return f'<img src="{path}.gif" width="{_WIDTH_PX}" alt="a video">'
        with atomic_write(self._folder / path.with_suffix(".mp3")) as temporary:
            temporary.write_bytes(mp3_bytes(content))
        save_image(self._folder / path.with_suffix(".jpg"), spectrogram(content), quality=85)
        return f'<a href="{path}.mp3"><img src="{path}.jpg" width="{_SPECTROGRAM_PX[0]}" alt="a sound"></a>'


def mp3_bytes(audio: Audio) -> bytes:
    """A sound as MP3, one channel at 24 kHz."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, audio.mono().resample(24_000).wave[0], 24_000, format="MP3", compression_level=0.7)
    return content.getvalue()


def spectrogram(audio: Audio) -> Image.Image:
    """A picture of a sound: log-mel power over time, low tones below."""
    from matplotlib import colormaps

    power_TF = log_mel(waveform(audio)[None], mels=64, window=1024, hop=256)[0]
    shade = torch.clamp(1 + (power_TF - power_TF.max()) / _DYNAMIC_RANGE, 0, 1).T.flip(0).numpy()
    pixels = (colormaps["magma"](shade)[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(pixels).resize(_SPECTROGRAM_PX, Image.Resampling.BILINEAR)
