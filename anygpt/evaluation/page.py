"""Results as a static page: the table, and of every task the worst cases with their pictures and sounds."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from anygpt.evaluation.bench import Bench
from anygpt.evaluation.exhibits import Content, Exhibit, exhibit, judged_column, ranked
from anygpt.evaluation.report import shown_cases, shown_rate, shown_target
from anygpt.evaluation.run import Outcome
from anygpt.evaluation.tasks import COLUMNS, Task
from anygpt.media import Audio, atomic_write, save_audio, save_image
from anygpt.video import Video, save_video

WORST = 8
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .3rem .6rem; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid #ddd; } th { border-bottom: 2px solid #888; }
.rate { position: relative; min-width: 9rem; }
.rate i { position: absolute; bottom: 2px; height: 4px; background: #bbd; }
.rate b { position: absolute; bottom: 0; height: 8px; width: 2px; background: #225; } .met { color: #060; }
.missed { color: #a00; } .case { border: 1px solid #ccc; border-radius: 6px; padding: .5rem 1rem; margin: .8rem 0; }
.parts { display: flex; flex-wrap: wrap; gap: 1.2rem; } .parts > div { max-width: 22rem; }
.label { color: #666; font-size: 12px; } img { width: 160px; image-rendering: auto; } p { margin: .1rem 0; }
"""


def write_page(
    folder: Path,
    summary: Mapping[str, Any],
    tasks: Sequence[Task],
    outcomes: Mapping[str, dict[str, Outcome]],
    bench: Bench,
) -> Path:
    """Write `index.html` and `media/` into `folder`, and return the page's path; earlier ones there are replaced.

    `outcomes` are those of the seed of `bench`. The page needs no other files and no network.
    """
    shutil.rmtree(folder / "media", ignore_errors=True)
    media = _Media(folder)
    parts = [
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Quality of {escape(summary['model'])}</title><style>{_STYLE}</style>",
        f"<h1>Quality of {escape(summary['model'])}</h1>",
        f"<p>Seed {summary['seed']}. Command: <code>{escape(summary['command'])}</code></p>",
        *_table(summary["rows"]),
    ]
    for task in tasks:
        parts += _worst(task, outcomes.get(task.name, {}), bench, media)
    path = folder / "index.html"
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


class _Media:
    """Pictures and sounds of the page, as files beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def html(self, content: Content) -> str:
        """A part of a case as HTML."""
        if isinstance(content, str):
            return f"<p>{escape(content)}</p>"
        self._count += 1
        path = Path("media") / f"{self._count:05d}"
        if isinstance(content, Image.Image):
            save_image(self._folder / path.with_suffix(".png"), content)
            return f'<img src="{path}.png" alt="" loading="lazy">'
        if isinstance(content, Video):
            save_video(self._folder / path.with_suffix(".mp4"), content)
            return f'<video controls loop muted preload="metadata" src="{path}.mp4"></video>'
        assert isinstance(content, Audio), content
        save_audio(self._folder / path.with_suffix(".wav"), content)
        return f'<audio controls preload="metadata" src="{path}.wav"></audio>'


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "<table><tr><th>task<th>measure<th>target<th>real media<th>reconstruction<th>model<th>cases</tr>"
    for index, row in enumerate(rows):
        is_first = index == 0 or rows[index - 1]["task"] != row["task"]
        task = f'<a href="#{row["task"]}">{escape(row["task_title"])}</a>' if is_first else ""
        mark = {None: "", True: ' class="met"', False: ' class="missed"'}[row["met"]]
        rates = "".join(f'<td class="rate">{_rate(row["columns"].get(name))}' for name in COLUMNS)
        yield f"<tr><td>{task}<td>{escape(row['title'])}<td{mark}>{shown_target(row)}{rates}<td>{shown_cases(row)}</tr>"
    yield "</table>"


def _rate(found: Mapping[str, float] | None) -> str:
    """A rate, with its interval as a bar where it is one of 0 to 100%."""
    if found is None or found["low"] < 0 or found["high"] > 1:
        return shown_rate(found)
    low, high, value = (100 * found[name] for name in ("low", "high", "value"))
    bar = f'<i style="left:{low:.1f}%;width:{max(high - low, 0.5):.1f}%"></i><b style="left:{value:.1f}%"></b>'
    return shown_rate(found) + bar


def _worst(task: Task, outcomes: dict[str, Outcome], bench: Bench, media: _Media) -> Iterator[str]:
    column = judged_column(task, outcomes)
    if column is None:
        return
    yield f'<h2 id="{task.name}">{escape(task.title)}</h2>'
    if task.about:
        yield f"<p>{escape(task.about)}</p>"
    outcome = outcomes[column]
    order, case_of = ranked(task, outcome.scores), task.cases(bench)
    count = min(WORST, len(order))
    yield f"<p>The worst {count} of {len(order)} by the mean of their measures, {column}:</p>"
    for index, _ in order[:count]:
        yield from _case(exhibit(task, bench, case_of(index), outcome, column), media)


def _case(shown: Exhibit, media: _Media) -> Iterator[str]:
    yield f'<div class="case"><p class="label">case {shown.index}, {100 * (shown.value or 0.0):.1f}</p>'
    yield '<div class="parts">'
    groups: list[tuple[str, Content]] = [
        *shown.asked,
        *(("reconstruction", each) for each in shown.rebuilt),
        *(("answer", each) for each in shown.answer),
        *(("right", each) for each in shown.right),
    ]
    for label, content in groups:
        yield f'<div><p class="label">{escape(label)}</p>{media.html(content)}</div>'
    yield "</div></div>" if shown.has_answer else "<div><p>No answer.</p></div></div></div>"
