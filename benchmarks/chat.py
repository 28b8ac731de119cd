"""Time to the first token of an answer against the number of the turn: kept cache or everything again.

    python benchmarks/chat.py [--model NAME] [--turns N] [--repeats N] [--threads N] [--plot FILE]

Three ways answer the same conversation in turns: ours with the cache of the conversation, ours without (a new session
for every turn), and transformers' `generate` over the whole prompt. The answers are fixed, so that all see the same
ids. Times are processor seconds of this process, divided by the threads: other load on the machine hardly counts.

Where a picture is shown and the model has settings for reading it, what an answer says of it is chosen among several
openings; that takes longer, is timed by itself (of `OPENING` ids each, "kept cache, a choice") and left out elsewhere.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anygpt import AnyGPT
from anygpt.engine import find_model
from anygpt.errors import AnyGPTError
from anygpt.generation.cache import StaticCache
from anygpt.prompts.segments import Media, Turn
from anygpt.prompts.templates import user_turn
from anygpt.session import Event, Session, TurnsDropped
from anygpt.vocabulary import Text

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

MODELS = ("anygpt-mini-chat", "anygpt-mini-base")
WAYS = ("kept cache", "everything again", "transformers")
CHOICE = "kept cache, a choice"
OPENING = 24
QUESTIONS = ("what is in this picture?", "is there something else in it?", "what colour is it?", "make it larger")
ANSWERS = (
    "a large red apple on a white background",
    "no, there is nothing else",
    "it is red",
    "here it is, larger now",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or name; by default the shipped chat model, else the base model")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path("docs/chat_latency.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = find(options.model)
    rows = measure(folder, options.turns, options.repeats, options.threads)
    for row in rows:
        print(json.dumps(row))
    print(json.dumps(summary(folder.name, rows)))
    plot(rows, folder.name, options.plot)


def find(model: str | None) -> Path:
    if model is not None:
        return find_model(model)
    for name in MODELS:
        try:
            return find_model(name)
        except AnyGPTError:
            continue
    raise SystemExit(f"none of {', '.join(MODELS)} is in models/")


def measure(folder: Path, turns: int, repeats: int, threads: int) -> list[dict[str, float]]:
    """The fastest of the repeats, a row for every turn: prompt length in ids, and milliseconds of each way."""
    from transformers import LlamaForCausalLM

    ours = AnyGPT.from_pretrained(folder, device="cpu", seed=0)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reading, ours.reading = ours.reading, {}
    seconds: list[dict[str, list[float]]] = [{way: [] for way in (*WAYS, CHOICE)} for _ in range(turns)]
    lengths = [0] * turns
    for _ in range(repeats + 1):
        session = ours.session()
        for number in range(turns):
            question = user_turn(QUESTIONS[number % 4], [picture(ours, number)] if number % 4 == 0 else [])
            prompt = session.prompt_ids(question)
            answer = answer_ids(ours, question, ANSWERS[number % 4])
            fresh = ours.session()
            fresh.restore(session.turns)
            assert fresh.prompt_ids(question) == prompt, "the ways differ in what they read"
            if question.media and reading:
                ours.reading = reading
                limits = {"min_new_tokens": OPENING, "max_new_tokens": OPENING}
                seconds[number][CHOICE].append(first_piece(session, question, finish=False, **limits))
                ours.reading = {}
            with forced(ours, len(prompt), answer):
                spent = {
                    "kept cache": first_piece(session, question, finish=True),
                    "everything again": first_piece(fresh, question, finish=False),
                    "transformers": first_id(theirs, prompt),
                }
            lengths[number] = len(prompt)
            for way, value in spent.items():
                seconds[number][way].append(value)
    return [
        {"turn": number + 1, "prompt_ids": lengths[number]}
        # The first conversation warms up.
        | {way: round(1000 * min(values[1:]) / threads, 2) for way, values in seconds[number].items() if values}
        for number in range(turns)
    ]


def picture(model: AnyGPT, number: int) -> Media:
    spec = model.specs["image"]
    codes = torch.randint(spec.codebook_size, (1, spec.frames or 32), generator=torch.Generator().manual_seed(number))
    return Media("image", codes)


def answer_ids(model: AnyGPT, question: Turn, text: str) -> list[int]:
    """The ids that follow the prompt where the answer is `text`."""
    session = model.session()
    start = len(session.prompt_ids(question))
    session.restore([question, Turn("assistant", [Text(text)])])
    return session.prompt_ids()[start:]


@contextmanager
def forced(model: AnyGPT, prompt_length: int, answer: Sequence[int]) -> Iterator[None]:
    """The model computes as ever, and says `answer` after a prompt of this length."""
    decoder = model.decoder
    append, logits = decoder.append, decoder.logits
    due = answer[0]

    def appended(ids: Sequence[int], cache: StaticCache) -> torch.Tensor:
        nonlocal due
        hidden_1D = append(ids, cache)
        due = answer[cache.length - prompt_length]
        return hidden_1D

    def said(hidden_1D: torch.Tensor, allowed: Sequence[range]) -> torch.Tensor:
        logits_1N = logits(hidden_1D, allowed)
        before = 0
        for ids in allowed:
            if due in ids:
                logits_1N[:, before + due - ids.start] = 1e4
            before += len(ids)
        return logits_1N

    decoder.append, decoder.logits = appended, said  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        decoder.append, decoder.logits = append, logits  # type: ignore[method-assign]


def first_piece(session: Session, question: Turn, *, finish: bool, **settings: Any) -> float:
    """Seconds until the first event of the answer; `finish` takes the rest as well, which then isn't timed."""
    events = session.send(question.text, media=question.media, answer="text", **settings)
    seen: list[Event] = []
    spent = timed(lambda: seen.append(next(events)))
    assert not isinstance(seen[0], TurnsDropped), "the conversation is too long for the model"
    for _ in events if finish else ():
        pass
    events.close()
    return spent


def first_id(model: "LlamaForCausalLM", prompt: Sequence[int]) -> float:
    ids = torch.tensor([prompt])
    limits = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}

    def generate() -> None:
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **limits)

    return timed(generate)


def timed(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def summary(model: str, rows: Sequence[dict[str, float]]) -> dict[str, float | str]:
    """Ratios at the last turn, and how much each way grew since the second."""
    last = rows[-1]
    ratios = {f"{way} / kept cache at turn {last['turn']}": last[way] / last["kept cache"] for way in WAYS[1:]}
    growth = {f"{way}: turn {last['turn']} / turn 2": last[way] / rows[1][way] for way in WAYS}
    return {"model": model, **{name: round(value, 2) for name, value in (ratios | growth).items()}}


def plot(rows: Sequence[dict[str, float]], model: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="turn", ylabel="processor time to the first token, ms", title=model)
    for way in (*WAYS, *([CHOICE] if any(CHOICE in row for row in rows) else [])):
        points = [(row["turn"], row[way]) for row in rows if way in row]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=way)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
