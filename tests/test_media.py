"""Reading and writing pictures and sounds, and every kind of bad file."""

import io
import os
import struct
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anygpt.errors import AnyGPTError, MediaError
from anygpt.media import (
    Audio,
    atomic_write,
    ensure_writable,
    is_silent,
    load_audio,
    load_image,
    save_audio,
    save_image,
)

SOUNDS = {
    "wav": {},
    "flac": {},
    "ogg": {},
    "mp3": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "aiff": {},
}


def tone(rate_hz: int = 16_000, duration_s: float = 1.0, channels: int = 1, freq_hz: float = 440.0) -> Audio:
    time_s = np.arange(int(rate_hz * duration_s)) / rate_hz
    waves = [0.5 * np.sin(2 * np.pi * freq_hz * (1 + channel) * time_s) for channel in range(channels)]
    return Audio(np.stack(waves).astype(np.float32), rate_hz)


def write_sound(path: Path, audio: Audio, kind: str) -> Path:
    soundfile.write(path, audio.wave.T, audio.rate_hz, **SOUNDS[kind])
    return path


def one_line(caught: pytest.ExceptionInfo[AnyGPTError], path: Path | str) -> str:
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path)), message
    return message


# Sounds


@pytest.mark.parametrize("kind", SOUNDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_and_channels(tmp_path: Path, kind: str, channels: int) -> None:
    audio = tone(24_000, channels=channels)
    loaded = load_audio(write_sound(tmp_path / f"a.{kind}", audio, kind))
    assert loaded.wave.dtype == np.float32 and loaded.channels == channels and loaded.rate_hz == 24_000
    assert loaded.duration_s == pytest.approx(1.0, abs=0.1)
    assert np.abs(loaded.wave).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 96_000])
def test_resampling_keeps_pitch_and_length(tmp_path: Path, rate_hz: int) -> None:
    audio = load_audio(save_audio(tmp_path / "a.wav", tone(rate_hz))).resample(16_000)
    assert audio.rate_hz == 16_000 and audio.samples == pytest.approx(16_000, abs=1)
    assert np.abs(np.fft.rfft(audio.wave[0])).argmax() == pytest.approx(440, abs=1)


def test_resampling_never_leaves_the_range() -> None:
    square = np.where(np.arange(8_000) // 20 % 2, 1.0, -1.0).astype(np.float32)[None]
    assert np.abs(Audio(square, 8_000).resample(16_000).wave).max() <= 1.0


def test_mono() -> None:
    audio = tone(channels=2)
    assert np.array_equal(audio.mono("first").wave[0], audio.wave[0])
    assert np.allclose(audio.mono("mean").wave[0], audio.wave.mean(axis=0))
    assert audio.mono().channels == 1 and audio.mono().wave.dtype == np.float32


@given(st.lists(st.integers(-32768, 32767), min_size=400, max_size=600), st.integers(1, 2))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sixteen_bit_sound_survives_unchanged(tmp_path: Path, samples: list[int], channels: int) -> None:
    wave_CT = np.tile(np.array(samples, dtype=np.float32) / 32768.0, (channels, 1))
    path = save_audio(tmp_path / "a.wav", Audio(wave_CT, 16_000))
    assert soundfile.info(path).subtype == "PCM_16"
    assert np.array_equal(load_audio(path).wave, wave_CT)


def test_saving_clips_instead_of_wrapping(tmp_path: Path) -> None:
    loud = Audio(np.full((1, 800), 1.5, dtype=np.float32) * np.sign(np.arange(800) - 400.5).astype(np.float32), 16_000)
    loaded = load_audio(save_audio(tmp_path / "a.wav", loud))
    assert np.array_equal(np.sign(loaded.wave), np.sign(loud.wave))


def test_float_files_are_clipped_and_non_finite_refused(tmp_path: Path) -> None:
    samples = np.full(800, 2.0, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert load_audio(tmp_path / "a.wav").wave.max() == 1.0
    samples[5] = np.nan
    soundfile.write(tmp_path / "b.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="not finite"):
        load_audio(tmp_path / "b.wav")


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "opus"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.01])
def test_cut_off_sound(tmp_path: Path, kind: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_sound(tmp_path / f"a.{kind}", tone(24_000, 2.0), kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError) as caught:
        load_audio(path)
    one_line(caught, path)
    assert capfd.readouterr().err == ""  # libmpg123 would add lines of its own


def mp3_without_count(audio: Audio, tmp_path: Path, *, mode: str) -> bytes:
    """An MP3 as old or streaming encoders leave it: without the first frame that holds the number of frames."""
    path = tmp_path / "counted.mp3"
    soundfile.write(path, audio.wave.T, audio.rate_hz, format="MP3", bitrate_mode=mode, compression_level=0.5)
    data = path.read_bytes()
    place = max(data.find(b"Xing"), data.find(b"Info"))
    assert 0 < place < 64
    start = data.index(b"\xff\xfb" if audio.rate_hz >= 32_000 else b"\xff\xf3", place)
    return data[start:]


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_mp3_without_a_frame_count_is_read_whole(tmp_path: Path, mode: str) -> None:
    """libsndfile takes the length from the first bit rate, and would cut most of a recording that starts quietly."""
    rng = np.random.default_rng(0)
    quiet, loud = np.zeros(32_000), 0.3 * rng.standard_normal(64_000)
    audio = Audio(np.concatenate([loud, quiet])[None].astype(np.float32), 32_000)
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3_without_count(audio, tmp_path, mode=mode))
    loaded = load_audio(path)
    assert loaded.duration_s == pytest.approx(audio.duration_s, abs=0.15)
    assert np.abs(loaded.wave[0, :60_000]).mean() > 0.1
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MediaError, match="cut off"):
        load_audio(path)


def test_mp3_with_an_id3_tag(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mp3", tone(), "mp3")
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 2, 0]) + b"\xff\xfb" + bytes(254)
    path.write_bytes(tag + path.read_bytes() + b"TAG" + bytes(125))
    assert load_audio(path).duration_s == pytest.approx(1.0, abs=0.1)


def test_streamed_wav_with_unknown_length(tmp_path: Path) -> None:
    path = save_audio(tmp_path / "a.wav", tone())
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = data[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert load_audio(path).samples == 16_000


def test_ten_hours_are_refused_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.setnframes(36_000 * 16_000)
        file.writeframes(b"")
    size = 36_000 * 16_000 * 2
    header = bytearray(path.read_bytes())
    header[4:8], header[40:44] = struct.pack("<I", 36 + size), struct.pack("<I", size)
    path.write_bytes(header)
    os.truncate(path, 44 + size)  # a sparse file: nothing of it could be decoded this fast
    with pytest.raises(MediaError) as caught:
        load_audio(path)
    message = one_line(caught, path)
    assert "36000 s" in message and "600 s" in message
    assert "limit is 5 s" in str(
        pytest.raises(MediaError, load_audio, save_audio(path, tone(duration_s=6)), max_duration_s=5).value
    )


def test_a_long_mp3_is_refused_without_decoding(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mp3", tone(), "mp3")
    path.write_bytes(path.read_bytes() * 30)
    with pytest.raises(MediaError, match="the limit is 20 s"):
        load_audio(path, max_duration_s=20)


def test_silence(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-1, 2, (1, 16_000)) / 32768
    for wave_CT in (np.zeros((2, 16_000)), noise, np.full((1, 16_000), 0.4)):
        path = save_audio(tmp_path / "a.wav", Audio(wave_CT.astype(np.float32), 16_000))
        assert load_audio(path).samples == 16_000
        with pytest.raises(MediaError, match="silent"):
            load_audio(path, reject_silence=True)
    assert not is_silent(tone())
    assert load_audio(save_audio(tmp_path / "a.wav", tone()), reject_silence=True).samples == 16_000


@pytest.mark.parametrize("samples", [0, 1, 319])
def test_too_short_sound(tmp_path: Path, samples: int) -> None:
    path = save_audio(tmp_path / "a.wav", Audio(np.zeros((1, samples), dtype=np.float32), 16_000))
    with pytest.raises(MediaError, match=r"expected at least 0\.02 s"):
        load_audio(path)


def test_odd_rates_and_channel_counts(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(1000), 100)
    soundfile.write(tmp_path / "many.wav", np.zeros((1000, 12)), 16_000)
    with pytest.raises(MediaError, match="100 Hz"):
        load_audio(tmp_path / "slow.wav")
    with pytest.raises(MediaError, match="12 channels"):
        load_audio(tmp_path / "many.wav")


# Pictures


def picture(width: int = 40, height: int = 30) -> Image.Image:
    rows = np.linspace(0, 255, height)[:, None, None] * np.ones((1, width, 3))
    return Image.fromarray(rows.astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_formats_and_modes(tmp_path: Path, kind: str, mode: str) -> None:
    path = tmp_path / "a"
    image = picture()
    (image if kind in ("JPEG", "WEBP", "PPM") and mode == "P" else image.convert(mode)).save(path, format=kind)
    loaded = load_image(path)
    assert loaded.mode == "RGB" and loaded.size == (40, 30)
    difference = np.asarray(loaded, dtype=float) - np.asarray(image, dtype=float)
    assert np.abs(difference).mean() < 30 and np.asarray(loaded)[-1].mean() > 200


def test_exif_rotation(tmp_path: Path) -> None:
    image = picture()
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.size == (30, 40)
    assert np.asarray(loaded)[:, 0].mean() > 200 > 50 > np.asarray(loaded)[:, -1].mean()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 10, 20))
    if mode == "P":
        palette = Image.new("P", (20, 20), 1)
        palette.putpalette([0, 0, 0, 10, 20, 30])
        palette.paste(0, (0, 0, 10, 20))
        palette.save(tmp_path / "a.png", transparency=1)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    pixels = np.asarray(load_image(tmp_path / "a.png"))
    assert (pixels[:, :10] == 0).all() and (pixels[:, 10:] == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    grey = (np.linspace(0, 65535, 40)[None] * np.ones((30, 1))).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    pixels = np.asarray(load_image(tmp_path / "a.png"))
    assert np.abs(pixels[0, :, 0] - np.linspace(0, 255, 40)).max() <= 1


def test_cmyk(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").mode == "RGB"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (10_000, 10_000), (100_000, 1_000)])
def test_huge_pictures_are_refused_by_the_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(width, height))
    with pytest.raises(MediaError) as caught:
        load_image(path)
    assert "limit of 80 million" in one_line(caught, path) or "limit is 80 million" in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_tiny_pictures_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", size).save(path)
    with pytest.raises(MediaError) as caught:
        load_image(path)
    assert f"{size[0]}x{size[1]} pixels, expected at least 8" in one_line(caught, path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_cut_off_pictures(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "a"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format=kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MediaError) as caught:
        load_image(path)
    one_line(caught, path)


# Both


@pytest.mark.parametrize("load", [load_audio, load_image])
def test_paths_that_hold_no_media(tmp_path: Path, load) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("just words\n" * 100)
    (tmp_path / "text.raw").write_text("just words\n" * 100)
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "zeros.jpg").write_bytes(bytes(5000))
    os.mkfifo(tmp_path / "pipe")
    for name, part in {
        "none.wav": "no such file",
        "": "is a directory",
        "empty.wav": "empty (0 bytes)",
        "text.wav": "not a",
        "text.raw": "not a",
        "noise.mp3": "not a",
        "zeros.jpg": "not a",
        "pipe": "not a regular file",
        "x" * 5000: "",
        "text.wav/below": "",
    }.items():
        with pytest.raises(MediaError) as caught:
            load(tmp_path / name)
        message = str(caught.value)
        assert part in message and "\n" not in message and len(message) < 600
    for name in ("a\nb.wav", "a\0b.wav"):
        with pytest.raises(MediaError) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_picture_is_no_sound_and_the_reverse(tmp_path: Path) -> None:
    save_image(tmp_path / "a.jpg", picture())
    save_audio(tmp_path / "a.wav", tone())
    with pytest.raises(MediaError, match="not a sound file"):
        load_audio(tmp_path / "a.jpg")
    with pytest.raises(MediaError, match="not a picture"):
        load_image(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_load_or_give_a_media_error(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    if kind.islower():
        soundfile.write(buffer, tone(duration_s=0.2).wave.T, 16_000, format=kind.upper())
    else:
        picture().save(buffer, format=kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a"
    path.write_bytes(content)
    try:
        if kind.islower():
            assert np.isfinite(load_audio(path).wave).all()
        else:
            assert load_image(path).mode == "RGB"
    except MediaError as error:
        assert "\n" not in str(error)


# Writing


def test_pictures_are_written_by_their_name(tmp_path: Path) -> None:
    for name, kind in {"a.jpg": "JPEG", "deep/b.jpeg": "JPEG", "c.png": "PNG"}.items():
        path = save_image(tmp_path / name, picture().convert("RGBA"))
        with Image.open(path) as image:
            assert image.format == kind
    assert np.abs(np.asarray(load_image(tmp_path / "a.jpg"), float) - np.asarray(picture(), float)).max() < 8


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [file.name for file in path.parent.iterdir()] == ["a.txt"]
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == path.parent
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for write in (
        lambda: save_audio(tmp_path / "file" / "a.wav", tone()),
        lambda: save_image(tmp_path / "file" / "deep" / "a.jpg", picture()),
        lambda: save_audio(tmp_path / "folder", tone()),
        lambda: save_audio("/proc/nowhere/a.wav", tone()),
        lambda: ensure_writable(tmp_path / "file"),
        lambda: ensure_writable("/proc/nowhere"),
    ):
        with pytest.raises(AnyGPTError, match=r"can't be written \(.*\); choose another output folder"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert ensure_writable(tmp_path / "fresh" / "deep").is_dir() and not list((tmp_path / "fresh" / "deep").iterdir())
