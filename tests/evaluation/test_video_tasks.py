"""Videos all the way: prompts, conversations, training data and tasks with a tiny random model that has them."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from fixtures_tiny import CONTEXT, SPECS_WITH_VIDEO, build_home
from PIL import Image

from anygpt import AnyGPT
from anygpt.cli.evaluate import evaluate
from anygpt.cli.main import main
from anygpt.cli.tokenize import tokenize
from anygpt.cli.world import world
from anygpt.code_strings import split_codes, string_to_codes
from anygpt.errors import AnyGPTError, CheckpointError, CodeError, ConfigError
from anygpt.evaluation.bench import Bench, Case
from anygpt.evaluation.judges import ImageJudge
from anygpt.evaluation.videos import is_empty, read_video, video_caption_scores, video_cases
from anygpt.media import Audio
from anygpt.tokenizers.base import load_tokenizer
from anygpt.tokenizers.frames.tokenizer import FramesTokenizer
from anygpt.video import Video, load_video, save_video
from anygpt.world import images, videos
from anygpt.world.videos import VideoWorld

BENCH: Any = Bench(tokenizer=lambda name: None, judges=Path())  # type: ignore[arg-type, return-value]
EVERYTHING = {"event", "objects", "background", "all"}


@pytest.fixture(scope="module")
def video_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_home(tmp_path_factory.mktemp("video"), SPECS_WITH_VIDEO)


@pytest.fixture
def home_with_video(video_home: Path, monkeypatch: pytest.MonkeyPatch, in_tmp_path: Path) -> Path:
    monkeypatch.setenv("ANYGPT_HOME", str(video_home))
    return video_home


def clip(index: int = 0, *, sound: bool = False) -> Video:
    frames = tuple(map(Image.fromarray, VideoWorld().sample(index).frames))
    noise = np.random.default_rng(index).normal(0, 0.1, (1, 20_000)).astype(np.float32)
    return Video(frames, 2.0, Audio(noise, 16_000) if sound else None)


# ---- the tokenizer ----


def test_a_video_is_its_frames_and_its_sound(home_with_video: Path) -> None:
    tokenizer = load_tokenizer(home_with_video / "tokenizers/video-tiny")
    assert tokenizer.spec == SPECS_WITH_VIDEO["video"]
    given = [clip(0, sound=True), clip(1)]
    codes = tokenizer.encode(given)
    for video, codes_KT in zip(given, codes, strict=True):
        frames, sound = split_codes(tokenizer.spec, codes_KT)
        image, audio = tokenizer.parts
        assert all(map(torch.equal, frames, image.encode(video.frames)))
        assert (sound is None) == (video.sound is None)
        if sound is not None and video.sound is not None:
            # Two seconds of frames: the sound of 1.25 s goes on in silence.
            padded = np.pad(video.sound.wave, ((0, 0), (0, 12_000)))
            assert torch.equal(sound, audio.encode([Audio(padded, 16_000)])[0]) and sound.shape == (2, 50)
        rebuilt = tokenizer.decode(codes_KT)
        assert len(rebuilt.frames) == 4 and rebuilt.rate_hz == 2.0 and (rebuilt.sound is None) == (sound is None)
    with pytest.raises(CodeError):
        tokenizer.decode(codes[0][:, 3:])


def test_its_codes_mean_what_those_of_its_parts_do(home_with_video: Path) -> None:
    image, audio = load_tokenizer(home_with_video / "tokenizers/video-tiny").parts
    tokenizers = [FramesTokenizer(image, audio), FramesTokenizer(image), FramesTokenizer(image, frame_rate_hz=1.0)]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 3
    for parts, rate_hz, message in (
        ((audio,), 2.0, "video is made of image and audio, got audio"),
        ((image,), 5.0, "'frame_rate_hz' is 5, expected 1 to 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            FramesTokenizer(*parts, frame_rate_hz=rate_hz)


def test_other_pictures_than_the_models_are_refused(home_with_video: Path) -> None:
    model = AnyGPT.from_pretrained(seed=7)
    image, audio = load_tokenizer(home_with_video / "tokenizers/video-tiny").parts
    image.model.query_tokens.data += 1  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="the image tokenizer doesn't match the model"):
        model.tokenizers.add(FramesTokenizer(image, audio))


# ---- prompts, conversations, data ----


def test_prompts_both_ways(home_with_video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AnyGPT.from_pretrained(seed=7)
    answer = model.run("text|video|a cat appears", min_new_tokens=96, max_new_tokens=128)
    assert answer.video is not None and answer.codes_KT is not None and answer.media is answer.video
    frames, _ = split_codes(model.specs["video"], answer.codes_KT)
    assert 1 <= len(frames) == len(answer.video.frames) <= 4
    path = answer.save(Path("answers"))
    with av.open(str(path)) as file:
        assert path.suffix == ".mp4" and sum(1 for _ in file.decode(video=0)) == len(frames)
    for name in ("clip.mp4", "clip.gif"):
        told = model.run(f"video|text|{save_video(Path(name), clip())}")
        assert told.text is not None and told.modality == "text"
    assert torch.equal(model.encode("video", Path("clip.mp4")), model.encode("video", load_video("clip.mp4")))
    results = list(model.run_batch(["text|video|a dog grows", "video|text|clip.mp4", "video|text|none.mp4"], seed=1))
    assert results[0].video is not None and results[1].text and "no such file" in str(results[2].error)
    # A frame is 32 codes: the context of 320 ids holds 5 s of two a second, tags not counted.
    long = Video(clip().frames * 4, 2.0)
    with pytest.raises(AnyGPTError, match=f"the limit is {CONTEXT / 64:g} s"):
        model.run(f"video|text|{save_video(Path('long.mp4'), long)}")
    main(["base", "--prompt", "text|video|a cat appears", "--output-dir", "made", "--seed", "3"])
    (made,) = Path("made").glob("*.mp4")
    assert made.name in capsys.readouterr().out and load_video(made).frames


def test_conversations_take_and_give_videos(home_with_video: Path) -> None:
    from anygpt.chat_lines import Message, find_attachments, parse_line
    from anygpt.conversation import load_conversation, save_conversation

    model = AnyGPT.from_pretrained(seed=7)
    session = model.session(seed=1)
    path = save_video(Path("clip.mp4"), clip())
    message = parse_line(f"interleaved|what happens?|text||||||{path}", model.specs.values())
    assert isinstance(message, Message) and find_attachments(message).media == (("video", str(path)),)
    assert list(session.send(message.text, media=find_attachments(message).media, answer="text"))
    session.clear()
    events = list(session.send("show it", answer="video", max_new_tokens=32))
    made = [event for event in events if getattr(event, "modality", None) == "video"]
    assert len(made) == 2 and isinstance(made[1].media, Video)  # type: ignore[union-attr]
    assert load_conversation(save_conversation("talk", session.turns, model), model) == session.turns
    with pytest.raises(AnyGPTError, match="is a video: it belongs in the last field"):
        find_attachments(Message(text="what?", images_or_voice=((str(path),), ())))


def test_a_model_without_videos_says_so_in_one_line(home: Path) -> None:
    model = AnyGPT.from_pretrained(seed=7)
    for prompt in ("text|video|a cat appears", "video|text|clip.mp4"):
        with pytest.raises(AnyGPTError, match="unknown form .*, this model has no video; known: text.image") as error:
            model.run(prompt)
        assert "\n" not in str(error.value)


def test_files_and_the_world_become_training_data(home_with_video: Path) -> None:
    tokenizer = home_with_video / "tokenizers/video-tiny"
    world("video", out=Path("data"), count=3, tokenizer=str(tokenizer), seed=4)
    world("video", out=Path("raw"), count=3, raw=True, seed=4)
    tokenize(Path("raw/manifest.jsonl"), out=Path("files.jsonl"), tokenizer=str(tokenizer))
    rows = [json.loads(line) for line in Path("data/video_captions.jsonl").read_text().splitlines()]
    files = [json.loads(line) for line in Path("files.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [VideoWorld(seed=4).sample(i).caption for i in range(3)]
    assert [row["text"] for row in files] == [row["text"] for row in rows]
    for row in (*rows, *files):
        assert string_to_codes(SPECS_WITH_VIDEO["video"], row["video"]).shape == (1, 4 * 32)


# ---- tasks ----


def right(text: str | None, truth: str) -> set[str]:
    attributes = videos.parse_caption(truth)
    assert attributes is not None
    case = Case(index=0, seed=0, media=None, text=truth, truth=videos.facts(attributes))
    return {name for name, (counted, _) in video_caption_scores(BENCH, case, text).items() if counted}


def test_captions_are_compared_attribute_by_attribute() -> None:
    truth = "a cat moves to the left on a blue background"
    assert right(truth, truth) == EVERYTHING
    assert right("a dog moves to the left on a blue background", truth) == {"event", "background"}
    assert right("a cat grows on a pink background", truth) == {"objects"}
    assert right("a cat", truth) == right(None, truth) == set()


class PerfectJudge:
    """Knows the scenes that pictures are of."""

    def __init__(self, scenes: list[images.Scene | None]) -> None:
        self._scenes = scenes

    def read(self, pictures: list[Image.Image]) -> list[dict[str, str]]:
        anything = {"first": "bus", "first_size": "large", "second": "none", "second_size": "none"}
        empty = {**anything, "background": "gray", "place": "top"}
        return [empty if scene is None else images.attributes(scene) for scene in self._scenes]


def test_what_happens_follows_from_the_ends() -> None:
    for index in range(60):
        case = video_cases(BENCH)(index)
        attributes = videos.parse_caption(case.text)
        assert attributes is not None and attributes.is_held_out and case.truth == videos.facts(attributes)
        judge: Any = PerfectJudge(list(attributes.scenes))
        assert read_video(judge, case.media) == case.truth
        still = Video((case.media.frames[0],) * 2, 2.0)
        assert read_video(PerfectJudge([attributes.scenes[0]] * 2), still) is None  # type: ignore[arg-type]
    assert is_empty(Image.fromarray(images.draw("sunset", [])))
    assert not is_empty(Image.fromarray(images.draw("black", [("ring", 28, 0.5, 0.5)])))


def test_an_object_that_becomes_another_on_its_way_is_unclear() -> None:
    attributes = videos.parse_caption("a cat moves up on a white background")
    assert attributes is not None
    start, _ = attributes.scenes
    other = images.Scene(objects=("dog",), sizes=("medium",), background="black", place="top")
    judge: Any = PerfectJudge([start, other])
    found = read_video(judge, Video((Image.fromarray(images.render(other)),) * 2, 2.0))
    assert found == {"event": "up", "first": "unclear", "second": "none", "background": "unclear"}


def test_tasks_end_in_report_page_and_gallery(home_with_video: Path) -> None:
    judge = ImageJudge()
    judge.scores = {"all": 0.5}
    judge.save(Path("runs/judges"))
    tasks = ["video-to-text,text-to-video"]
    evaluate(n=2, tasks=tasks, html=Path("page"))
    rows = json.loads(Path("docs/quality.json").read_text())["rows"]
    targets = {row["task"]: row["target"]["value"] for row in rows if row["measure"] == "event"}
    assert targets == {"video-to-text": 0.75, "text-to-video": 0.6}
    assert all(set(row["columns"]) == {"real", "reconstruction", "model"} for row in rows)
    assert Path("page/index.html").is_file() and list(Path("page/media").glob("*.mp4"))
    evaluate(n=2, tasks=tasks, gallery=Path("gallery"))
    assert "## Text to video" in Path("gallery/index.md").read_text() and list(Path("gallery/media").glob("*.gif"))


def test_the_shipped_stage_that_adds_videos_is_valid() -> None:
    from anygpt.paths import resource
    from anygpt.training.stage1 import read_stage1

    config = read_stage1(resource("config", "stage1-video-mini.yaml"))
    (spec,) = [spec for spec in config.specs() if spec.name == "video"]
    tokenizer = load_tokenizer(resource("tokenizers", "frames-mini"))
    assert tokenizer.spec == spec and [part.name for part in spec.parts] == ["image"]
    assert {source.direction for source in config.data if source.modality == "video"} == {"x2text", "text2x"}
    assert sum(source.weight for source in config.data) == pytest.approx(1)
    assert spec.fewest_codes * videos.FRAMES == 128
