"""The public benchmarks as tasks: which set, what the model is asked, which rule scores the answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anygpt.evaluation.bench import Bench, Case, Question
from anygpt.evaluation.benchmarks.refcoco import REF_SETS, ask_for_box, box_is_right
from anygpt.evaluation.benchmarks.rules import (
    LETTERS,
    chosen_letter,
    exact_match,
    mme_answer,
    pope_answer,
    vqa_accuracy,
)
from anygpt.evaluation.benchmarks.sets import MME_SUBTASKS, set_cases
from anygpt.evaluation.captions import cider_scores
from anygpt.evaluation.metrics import Scores
from anygpt.evaluation.tasks import (
    MODEL,
    REAL,
    REBUILT,
    Ask,
    Column,
    Get,
    Row,
    Score,
    Task,
    Together,
    made,
    told,
    word_scores,
)
from anygpt.media import Audio, load_audio, load_image
from anygpt.modality import MODALITIES

_LOADERS: Mapping[str, Callable[[Path], Any]] = {"image": load_image, "audio": load_audio}
"""Kind of file (`ModalitySpec.media`) -> how it is read."""
VOICE_S = 3.0
"""Length of voice prompts, as in the paper's zero-shot speech."""
SHORT = "Answer the question using a single word or phrase."
YES_NO = "Please answer yes or no."
LETTER = "Answer with the option's letter from the given choices directly."


# ---- what is asked, and what stands in for the model's answer ----


def _say(bench: Bench, case: Case) -> list[Question]:
    """The case's text in the voice of its prompt."""
    settings = {"voice": _voice(case)}
    return [Question(source="text", target="speech", content=case.text, seed=case.seed, settings=settings)]


def _voice(case: Case) -> Audio:
    """The beginning of the case's voice prompt."""
    prompt = load_audio(case.others[0])
    return Audio(prompt.wave[:, : round(VOICE_S * prompt.rate_hz)], prompt.rate_hz)


def _in_words(form: str) -> Ask:
    """A question in words about a picture; `form` has {text}."""
    return lambda bench, case: [_about_picture(case, form.format(text=case.text))]


def _about_picture(case: Case, words: str) -> Question:
    return Question(source="image", target="text", content=case.media, words=words, seed=case.seed)


def _likeliest(bench: Bench, case: Case) -> str:
    """The choice that is the likeliest answer to the bare question."""
    found = bench.log_likelihoods(_about_picture(case, case.text), case.references)
    return case.references[max(range(len(found)), key=found.__getitem__)]


def _both_questions(bench: Bench, case: Case) -> list[Question]:
    return [_about_picture(case, question) for question in case.references]


def _choosing(bench: Bench, case: Case) -> list[Question]:
    return [_about_picture(case, _with_choices(case, 0))]


def _choosing_in_turn(bench: Bench, case: Case) -> list[Question]:
    """Once for each rotation of the choices."""
    return [_about_picture(case, _with_choices(case, shift)) for shift in range(len(case.references))]


def _with_choices(case: Case, shift: int) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, _rotated(case, shift), strict=False)]
    return "\n".join((case.text, *lines, LETTER))


def _rotated(case: Case, shift: int) -> tuple[str, ...]:
    return case.references[shift:] + case.references[:shift]


def _real(modality: str) -> Get:
    return lambda bench, case: _load(modality, case.media)


def _rebuilt(modality: str) -> Get:
    return lambda bench, case: bench.rebuild(modality, _load(modality, case.media), case)


def _rebuilt_in_voice(bench: Bench, case: Case) -> Any:
    return _rebuilt("speech")(bench, replace(case, settings={"voice": _voice(case)}))


def _load(modality: str, path: Path) -> Any:
    return _LOADERS[MODALITIES[modality].media](path)


# ---- how it is scored ----


def _clip(bench: Bench, case: Case, picture: Any) -> Scores:
    """Nearness of a picture to its caption and to the real picture; nothing has none."""
    if picture is None:
        return {"caption": (0.0, 1.0), "picture": (0.0, 1.0)}
    scorer = bench.scorer("clip")
    real = _load("image", case.media)
    return {
        "caption": (scorer.text_image(case.text, picture), 1.0),
        "picture": (scorer.image_image(real, picture), 1.0),
    }


def _spoken(bench: Bench, case: Case, audio: Any) -> Scores:
    """What Whisper understands, and whose voice it is."""
    if audio is None:
        return {**_words_only(bench, case, None), "speaker": (0.0, 1.0)}
    similarity = bench.scorer("speaker").similarity(audio, _voice(case))
    return {**_words_only(bench, case, bench.scorer("whisper").transcribe(audio)), "speaker": (similarity, 1.0)}


def _words_only(bench: Bench, case: Case, text: str | None) -> Scores:
    return {"wer": word_scores(bench, case, text)["wer"]}


def _clap_caption(bench: Bench, case: Case, text: str | None) -> Scores:
    """Nearness of a caption to the real music."""
    similarity = bench.scorer("clap").text_sound(text, _load("music", case.media)) if text else 0.0
    return {"clap": (similarity, 1.0)}


def _clap_music(bench: Bench, case: Case, clip: Any) -> Scores:
    """Nearness of a clip to its caption."""
    return {"clap": (0.0 if clip is None else bench.scorer("clap").text_sound(case.text, clip), 1.0)}


def _nothing(bench: Bench, case: Case, got: Any) -> Scores:
    """All scores come from the cases together."""
    return {}


def _cider(cases: Sequence[Case], answers: Sequence[Sequence[str | Path]]) -> list[Scores]:
    return cider_scores([" ".join(map(str, answer)) for answer in answers], [case.references for case in cases])


def _vqa(bench: Bench, case: Case, said: str | None) -> Scores:
    score = (vqa_accuracy(said or "", case.references), 1.0)
    return {"accuracy": score} | ({case.truth["kind"]: score} if "kind" in case.truth else {})


def _exact(bench: Bench, case: Case, said: str | None) -> Scores:
    return {"accuracy": (exact_match(said or "", case.truth["answer"]), 1.0)}


def _pope(bench: Bench, case: Case, said: str | None) -> Scores:
    """Accuracy, and precision, recall and F1 of yes; silence is a wrong answer and not a yes."""
    answer, truth = pope_answer(said) if said is not None else None, case.truth["answer"]
    is_right = float(answer == truth)
    scores: Scores = {"accuracy": (is_right, 1.0), case.truth["kind"]: (is_right, 1.0)}
    scores["yes"] = (float(answer == "yes"), 1.0)
    is_found = answer == truth == "yes"
    if answer == "yes":
        scores["precision"] = (float(is_found), 1.0)
    if truth == "yes":
        scores["recall"] = (float(is_found), 1.0)
    if "yes" in (answer, truth):
        # F1 = 2 TP / (2 TP + FP + FN)
        scores["f1"] = (2.0, 2.0) if is_found else (0.0, 1.0)
    return scores


def _mme(bench: Bench, case: Case, said: Any) -> Scores:
    """Of a picture's questions how many are right, and whether all are."""
    answers = [case.truth[f"answer {number}"] for number in range(len(case.references))]
    given = [None] * len(answers) if said is None else [said] if isinstance(said, str) else said
    right = [each is not None and mme_answer(each) == answer for each, answer in zip(given, answers, strict=True)]
    subtask = case.truth["subtask"]
    return {subtask: (float(sum(right)), float(len(right))), f"{subtask}+": (float(all(right)), 1.0)}


def _chosen(bench: Bench, case: Case, said: str | None) -> Scores:
    return {"accuracy": (float(_is_chosen(case, said or "", 0)), 1.0)}


def _likeliest_is_right(bench: Bench, case: Case, text: str | None) -> Scores:
    return {"accuracy": (float(text == case.references[int(case.truth["answer"])]), 1.0)}


def _chosen_in_turn(bench: Bench, case: Case, said: Sequence[str] | None) -> Scores:
    """Whether every rotation is answered rightly, and whether the first is."""
    right = [_is_chosen(case, each, shift) for shift, each in enumerate(said or [])] or [False]
    return {"circular": (float(all(right)), 1.0), "first": (float(right[0]), 1.0)}


def _is_chosen(case: Case, said: str, shift: int) -> bool:
    choices = _rotated(case, shift)
    return chosen_letter(said, choices) == LETTERS[(int(case.truth["answer"]) - shift) % len(choices)]


# ---- the table ----


def _task(
    name: str,
    title: str,
    public_set: str,
    modality: str,
    ask: Ask | None,
    score: Score,
    *rows: Row,
    get: Get | None = None,
    real: Get | None = None,
    rebuilt: Get | None = None,
    together: Together | None = None,
    scorers: tuple[str, ...] = (),
    about: str = "",
) -> Task:
    """A benchmark; `get` is what the model does where it writes no answer, `real` and `rebuilt` give what is scored as
    its answer is: real media, or real words about them."""
    columns = {
        REAL: Column(get=real, score=score) if real else None,
        REBUILT: Column(get=rebuilt, score=score) if rebuilt else None,
        MODEL: Column(ask=ask, get=get, score=score, together=together, asks=True),
    }
    return Task(
        name=name,
        title=title,
        modalities=(modality,),
        cases=set_cases(public_set),
        columns={column: found for column, found in columns.items() if found is not None},
        rows=rows,
        is_public=True,
        scorers=scorers,
        about=about,
    )


_ACCURACY = Row(measure="accuracy", title="accuracy")


def _mme_rows() -> tuple[Row, ...]:
    """The score of a group is the sum of its subtasks' accuracies, of questions and of pictures."""
    rows = []
    for group, subtasks in MME_SUBTASKS.items():
        rows.append(Row(measure=group, title=f"{group}, points", parts=_mme_parts(*subtasks)))
        rows += [Row(measure=f"{name} points", title=f"{name}, points", parts=_mme_parts(name)) for name in subtasks]
    return tuple(rows)


def _mme_parts(*subtasks: str) -> tuple[str, ...]:
    return tuple(part for name in subtasks for part in (name, f"{name}+"))


BENCHMARKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task(
            "coco-caption", "image captioning, COCO", "coco", "image", told("image"), _nothing,
            Row(measure="cider", title="CIDEr"),
            together=_cider,
            about="Karpathy's test split. How telling a word is, is counted over the pictures evaluated.",
        ),
        _task(
            "coco-image", "text to image, COCO", "coco-val", "image", made("image"), _clip,
            Row(measure="caption", title="CLIP-score to the caption"),
            Row(measure="picture", title="CLIP-score to the real picture"),
            real=_real("image"), rebuilt=_rebuilt("image"), scorers=("clip",),
            about="A hundred times the cosine. One caption for each picture of val2014; the paper draws 30,000.",
        ),
        _task(
            "librispeech", "speech to text, LibriSpeech test-clean", "librispeech", "speech", told("speech"),
            _words_only,
            Row(measure="wer", title="word error rate", kind="at most"),
            about="Lower case, without punctuation and apostrophes.",
        ),
        _task(
            "vctk", "zero-shot text to speech, VCTK", "vctk", "speech", _say, _spoken,
            Row(measure="wer", title="Whisper's word error rate", kind="at most"),
            Row(measure="speaker", title="speaker similarity to the prompt"),
            real=_real("speech"), rebuilt=_rebuilt_in_voice, scorers=("whisper", "speaker"),
            about="One sentence for each speaker, with three seconds of another recording as the voice prompt. A "
            "hundred times the cosine of WavLM's x-vectors; the paper has WavLM-TDNN, another network of that kind.",
        ),
        _task(
            "musiccaps-caption", "music captioning, MusicCaps", "musiccaps", "music", told("music"), _clap_caption,
            Row(measure="clap", title="CLAP-score to the music"),
            real=lambda bench, case: case.text, scorers=("clap",),
            about="A hundred times the cosine; real is the caption that people wrote. Clips that are still there.",
        ),
        _task(
            "musiccaps-music", "text to music, MusicCaps", "musiccaps", "music", made("music"), _clap_music,
            Row(measure="clap", title="CLAP-score to the caption"),
            real=_real("music"), rebuilt=_rebuilt("music"), scorers=("clap",),
            about="A hundred times the cosine.",
        ),
        _task(
            "vqav2", "VQAv2, validation", "vqav2", "image", _in_words(f"{{text}} {SHORT}"), _vqa, _ACCURACY,
            *(Row(measure=kind, title=kind) for kind in ("yes/no", "number", "other")),
            about="The answers of the test split are not public.",
        ),
        _task("gqa", "GQA, test-dev balanced", "gqa", "image", _in_words(f"{{text}} {SHORT}"), _exact, _ACCURACY),
        _task(
            "scienceqa", "ScienceQA, test questions with a picture", "scienceqa", "image", _choosing, _chosen,
            _ACCURACY,
            about="Question, hint and choices; no lecture.",
        ),
        _task(
            "textvqa", "TextVQA, validation", "textvqa", "image", _in_words(f"{{text}} {SHORT}"), _vqa, _ACCURACY,
            about="Without OCR tokens in the prompt.",
        ),
        _task(
            "pope", "POPE on COCO", "pope", "image", _in_words(f"{{text}} {YES_NO}"), _pope,
            Row(measure="f1", title="F1 of yes"), _ACCURACY, Row(measure="precision", title="precision of yes"),
            Row(measure="recall", title="recall of yes"), Row(measure="yes", title="share of yes", kind="neither"),
            *(Row(measure=kind, title=f"accuracy, {kind}") for kind in ("random", "popular", "adversarial")),
        ),
        _task(
            "mme", "MME", "mme", "image", _both_questions, _mme, *_mme_rows(),
            about="Points: accuracy of questions and of pictures (both questions right), a hundred each, added up.",
        ),
        _task(
            "mmbench", "MMBench, development", "mmbench", "image", _choosing_in_turn, _chosen_in_turn,
            Row(measure="circular", title="accuracy, all rotations right"),
            Row(measure="first", title="accuracy, first order alone"),
            about="Letters are read by rule; the published evaluation asks another model where that fails.",
        ),
        _task(
            "seed-bench", "SEED-Bench, pictures", "seed-bench", "image", None, _likeliest_is_right, _ACCURACY,
            get=_likeliest,
            about="The choice that is the likeliest answer to the question alone, as published.",
        ),
        *(
            _task(
                name, f"{title}, a phrase to its box", name, "image", ask_for_box, box_is_right,
                Row(measure="accuracy", title="IoU above 0.5"),
                *(Row(measure=split, title=f"IoU above 0.5, {split}") for split in REF_SETS[name].splits),
                Row(measure="overlap", title="mean IoU"),
                about="Percents of width and height as in MiniGPT-v2, compared in pixels.",
            )
            for name, title in {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}.items()
        ),
    )
}  # fmt: skip
"""The benchmarks by name, in the order of the report."""
