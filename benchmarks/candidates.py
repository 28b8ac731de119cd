"""What guidance and candidates are worth: answers of held-out prompts, judged one by one and as `best_of` chooses them.

    python benchmarks/candidates.py --modality music --cases 24 --candidates 8 --guidance 1 --guidance 1.5
    python benchmarks/candidates.py --reading image --cases 100 --candidates 16 --temperature 1.5

For each guidance scale and attribute: the share of single answers that are right, of those that the model chooses among
so many, and of prompts with any that is right, which is what a perfect choice would give. Pictures and music are judged
by the judges of `anygpt eval --train-judges`, speech by the alignment with real sentences. With `--reading` the answers
are texts about media: the share that is right of the first candidates, which are the plain answers, of those chosen,
and of media with any that is right.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from anygpt import AnyGPT
from anygpt.candidates import best_fit, candidate_seed
from anygpt.evaluation.bench import Bench
from anygpt.evaluation.tasks import (
    TASKS,
    image_caption_scores,
    image_scores,
    music_caption_scores,
    music_scores,
    retrieval_scores,
)
from anygpt.generation.loop import decode
from anygpt.world.sentences import normalise

READ = {"image": "image-to-text", "speech": "speech-to-text-unseen", "music": "music-to-text"}
SCORES: dict[str, Any] = {"image": image_scores, "music": music_scores, "speech": retrieval_scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or name of a model (default: the shipped base model)")
    parser.add_argument("--modality", choices=SCORES, action="append", help="repeatable (default: all)")
    parser.add_argument("--reading", choices=READ, action="append", help="repeatable; in place of what is made")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the candidates of texts but the first")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--guidance", type=float, action="append", help="repeatable (default: 1 and 1.5)")
    parser.add_argument("--judges", type=Path, default=Path("runs/judges"))
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AnyGPT.from_pretrained(options.model)
    bench = Bench(tokenizer=model.tokenizers.get, judges=options.judges, seed=options.seed)
    if options.reading:
        print(f"| text about | temperature | plain answer | best of {options.candidates} | any of them |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for modality in options.reading:
            shares = measure_reading(model, bench, modality, options.cases, options.candidates, options.temperature)
            print(f"| {modality} | {options.temperature:g} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
        return
    print(f"| answer | guidance | right | single answers | best of {options.candidates} | any of them |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for modality in options.modality or SCORES:
        for scale in options.guidance or (1.0, 1.5):
            rows = measure(model, bench, modality, scale, options.cases, options.candidates)
            for name in rows[0][0]:
                single = mean(scores[name] for _, all_scores in rows for scores in all_scores)
                chosen = mean(best[name] for best, _ in rows)
                perfect = mean(max(scores[name] for scores in all_scores) for _, all_scores in rows)
                print(f"| {modality} | {scale:g} | {name} | {single:.0%} | {chosen:.0%} | {perfect:.0%} |", flush=True)


Scores = dict[str, float]


def measure(
    model: AnyGPT, bench: Bench, modality: str, scale: float, cases: int, candidates: int
) -> list[tuple[Scores, list[Scores]]]:
    """For each case the scores of the candidate that the model chooses, and those of all."""
    case_of: Any = TASKS[f"text-to-{modality}"].cases(bench)
    rows = []
    for number in range(cases):
        case = case_of(number)
        task = model.prepare("text", modality, case.text, case.seed, {"guidance_scale": scale, "best_of": 1})
        tasks = [replace(task, seed=candidate_seed(case.seed, each)) for each in range(candidates)]
        results = list(model.run_tasks(tasks, batch_size=candidates))
        scores = [
            {name: right for name, (right, _) in SCORES[modality](bench, case, result.media).items()}
            for result in results
        ]
        codes = [result.codes_KT for result in results if result.codes_KT is not None]
        rows.append((scores[best_fit(model, modality, case.text, codes)], scores))
    return rows


def measure_reading(
    model: AnyGPT, bench: Bench, modality: str, cases: int, candidates: int, temperature: float
) -> tuple[float, float, float]:
    """The shares of media whose first, chosen, and any text is right."""
    case_of: Any = TASKS[READ[modality]].cases(bench)
    found = []
    for number in range(cases):
        case = case_of(number)
        settings = {"best_of": candidates, "choice_temperature": temperature}
        task = model.prepare(modality, "text", case.media, case.seed, settings)
        making = model.making(task)
        for _ in decode(model.decoder, making, batch_size=candidates):
            pass
        best = making.index(model.chosen(task, making))
        texts = [model.result(task, answer.ids, 0.0).text for answer in making]
        right = [_is_right(bench, modality, case, text) for text in texts]
        found.append((right[0], right[best], any(right)))
    first, chosen, perfect = (mean(column) for column in zip(*found, strict=True))
    return first, chosen, perfect


def _is_right(bench: Bench, modality: str, case: Any, text: str | None) -> bool:
    if modality == "speech":
        return text is not None and normalise(text) == normalise(case.text)
    score = {"image": image_caption_scores, "music": music_caption_scores}[modality]
    return score(bench, case, text)["all"][0] == 1.0


if __name__ == "__main__":
    main()
