"""Videos as files: what is written is read by another library, and what can't be read is said in one line."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from anygpt.errors import MediaError
from anygpt.media import Audio, kind_of_file
from anygpt.video import Video, load_video, save_video


def clip(frames: int = 6, rate_hz: float = 2.0, *, sound: bool = False, size: tuple[int, int] = (96, 64)) -> Video:
    """A grey that gets lighter frame by frame; the sound is a tone as long as the frames."""
    pictures = tuple(Image.new("RGB", size, (grey, grey, grey)) for grey in levels(frames))
    time = np.arange(round(16_000 * frames / rate_hz)) / 16_000
    wave = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)[None]
    return Video(pictures, rate_hz, Audio(wave, 16_000) if sound else None)


def levels(frames: int) -> list[int]:
    return [20 + number * 200 // frames for number in range(frames)]


def greys(video: Video) -> list[int]:
    return [round(float(np.asarray(frame).mean())) for frame in video.frames]


@pytest.mark.parametrize("rate_hz", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_a_file_gives_its_frames_back(tmp_path: Path, name: str, rate_hz: float) -> None:
    given = clip(6, rate_hz)
    read = load_video(save_video(tmp_path / name, given))
    assert read.duration_s == pytest.approx(given.duration_s, abs=0.26) and read.rate_hz == 4.0
    again = load_video(tmp_path / name, rate_hz=rate_hz)
    assert len(again.frames) == 6 and greys(again) == pytest.approx(levels(6), abs=3)
    assert greys(load_video(tmp_path / name).at_rate(2.0))[0] == pytest.approx(20, abs=3)


def test_mp4_by_another_library(tmp_path: Path) -> None:
    with av.open(str(save_video(tmp_path / "clip.mp4", clip(sound=True, size=(97, 63))))) as file:
        (pictures,), (sounds,) = file.streams.video, file.streams.audio
        assert (pictures.codec.name, pictures.width, pictures.height, pictures.average_rate) == ("h264", 96, 62, 2)
        assert (sounds.codec.name, sounds.rate) == ("aac", 16_000)
        times = [frame.time for frame in file.decode(video=0)]
    assert times == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    read = load_video(tmp_path / "clip.mp4")
    assert read.sound is not None and read.sound.duration_s == pytest.approx(3.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(read.sound.wave[0]))
    assert spectrum.argmax() / read.sound.duration_s == pytest.approx(440, abs=2)


def test_gif_by_another_library(tmp_path: Path) -> None:
    with Image.open(save_video(tmp_path / "clip.gif", clip(4, 3.0, sound=True))) as image:
        shown = [
            (frame.info["duration"], frame.convert("L").getpixel((5, 5))) for frame in ImageSequence.Iterator(image)
        ]
    assert [duration for duration, _ in shown] == [330, 340, 330, 330]
    assert [grey for _, grey in shown] == pytest.approx(levels(4), abs=2)
    assert load_video(tmp_path / "clip.gif").sound is None


def test_frames_that_show_at_their_times_are_kept(tmp_path: Path) -> None:
    """Thirty a second become four, of which a tokenizer takes its two."""
    video = load_video(save_video(tmp_path / "clip.mp4", clip(60, 30.0)))
    assert greys(video) == pytest.approx([levels(60)[round(n * 7.5 - 0.01)] for n in range(8)], abs=6)
    assert greys(video.at_rate(2.0)) == pytest.approx([levels(60)[n] for n in (0, 15, 30, 45)], abs=6)
    assert len(clip(1, 2.0).at_rate(1.0).frames) == 1


def test_large_frames_are_scaled_down(tmp_path: Path) -> None:
    assert load_video(save_video(tmp_path / "wide.mp4", clip(2, size=(1280, 320)))).frames[0].size == (512, 128)
    assert load_video(save_video(tmp_path / "wide.gif", clip(2, size=(1280, 320)))).frames[0].size == (512, 128)


def test_silence_is_no_sound(tmp_path: Path) -> None:
    silent = Video(clip().frames, 2.0, Audio(np.zeros((1, 48_000), np.float32), 16_000))
    assert load_video(save_video(tmp_path / "silent.mp4", silent)).sound is None


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_every_cut_is_noticed(tmp_path: Path, name: str) -> None:
    whole = save_video(tmp_path / name, clip(sound=True)).read_bytes()
    cut = tmp_path / f"cut-{name}"
    for share in (0.02, 0.3, 0.6, 0.9):
        cut.write_bytes(whole[: max(8, int(share * len(whole)))])
        with pytest.raises(MediaError, match="damaged or cut off") as error:
            load_video(cut)
        assert "\n" not in str(error.value)


def test_a_cut_stream_is_noticed(tmp_path: Path) -> None:
    """The table of frames stands first, as in files for streaming, so that the rest can be read."""
    path = tmp_path / "fast.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=10, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(20):
            noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        file.mux(stream.encode(None))
    whole = path.read_bytes()
    assert len(load_video(path).frames) == 8
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="cut off"):
        load_video(path)


def test_bad_files_are_told_apart(tmp_path: Path) -> None:
    files = {
        "empty.mp4": b"",
        "text.mp4": b"hello, this is no video at all",
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nother.ts\n",
        "box.mp4": b"\0\0\0\x18ftypisom" + bytes(200),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (32, 32)).save(tmp_path / "still.png")
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16_000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 16_000
        file.mux(stream.encode(silence))
        file.mux(stream.encode(None))
    messages = {
        "missing.mp4": "no such file",
        "empty.mp4": "empty",
        "text.mp4": "not a video",
        "list.m3u8": "not a video",
        "still.png": "not a video that can be read; expected MP4, WebM, AVI or GIF",
        "box.mp4": "damaged or cut off",
        "sound.mp4": "no moving pictures",
        ".": "is a directory",
    }
    for name, message in messages.items():
        with pytest.raises(MediaError, match=re.escape(message)) as error:
            load_video(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_limits(tmp_path: Path, name: str) -> None:
    path = save_video(tmp_path / name, clip(6))
    with pytest.raises(MediaError, match="the limit is 2 s; cut it first"):
        load_video(path, max_duration_s=2)
    with pytest.raises(MediaError, match="96x64 pixels, the limit is 0.001 million"):
        load_video(path, max_pixels=1000)
    with pytest.raises(MediaError, match="expected at least 8 on each side"):
        load_video(save_video(tmp_path / f"small-{name}", clip(2, size=(40, 6))))


def test_kinds_of_files(tmp_path: Path) -> None:
    assert kind_of_file(save_video(tmp_path / "clip.mp4", clip(2))) == "video"
    assert kind_of_file(save_video(tmp_path / "clip.gif", clip(2))) == "image"
