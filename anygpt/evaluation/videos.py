"""Videos as cases: held-out clips, and what is right of a clip or of a caption.

The judge of pictures reads the first and the last frame; what happened between them follows by rule.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from anygpt.evaluation.bench import Bench, Case, captioned
from anygpt.evaluation.judges import ImageJudge
from anygpt.evaluation.metrics import Scores, compare
from anygpt.video import Video
from anygpt.world import images, videos
from anygpt.world.videos import EVENTS, NONE, VideoAttributes

VIDEO_MEASURES: Mapping[str, Sequence[str]] = {
    "event": ("event",),
    "objects": ("first", "second"),
    "background": ("background",),
    "all": tuple(videos.ATTRIBUTES),
}
"""Measure -> attributes that must all be right."""
UNCLEAR = "unclear"
EMPTY_DEVIATION = 2.0
"""Backgrounds are alike from left to right: a picture whose pixels deviate less than this from the mean of their row,
on average and of 255, shows no object (measured: empty ones up to 0.9 after the tokenizer, others from 3.7)."""


def video_cases(bench: Bench) -> Callable[[int], Case]:
    """Clips of held-out combinations with canonical captions."""
    world = videos.VideoWorld("heldout", seed=bench.world_seed)
    return captioned(
        bench,
        world,
        media=lambda sample: Video(tuple(map(Image.fromarray, sample.frames)), videos.RATE_HZ),
        truth=lambda sample: videos.facts(sample.attributes),
    )


def video_scores(bench: Bench, case: Case, video: Video | None) -> Scores:
    """What happens in a clip, against the case's attributes."""
    return compare(None if video is None else read_video(bench.image_judge, video), case.truth, VIDEO_MEASURES)


def video_caption_scores(bench: Bench, case: Case, text: str | None) -> Scores:
    """What a caption says."""
    found = videos.parse_caption(text or "")
    return compare(None if found is None else videos.facts(found), case.truth, VIDEO_MEASURES)


def read_video(judge: ImageJudge, video: Video) -> dict[str, str] | None:
    """The `facts` of a clip, None where it shows none of the events.

    Places and sizes tell the event. What the two frames should agree on and don't, an object or the background, is
    `UNCLEAR`.
    """
    ends = [video.frames[0], video.frames[-1]]
    found = [None if is_empty(frame) else read for frame, read in zip(ends, judge.read(ends), strict=True)]
    for name, event in EVENTS.items():
        actors = videos.ACTORS[: event.actors]
        scenes = VideoAttributes(event=name, objects=actors, background="white").scenes
        wanted = [None if scene is None else images.attributes(scene) for scene in scenes]
        frames = [(seen, scene) for seen, scene in zip(found, wanted, strict=True) if seen and scene]
        if not frames or not all(map(_is_laid_out, found, wanted)):
            continue
        names = [
            _agreed({seen[slot] for seen, scene in frames for slot in ("first", "second") if scene[slot] == actor})
            for actor in actors
        ]
        if event.actors == 2 and len({(seen["first"], seen["second"]) for seen, _ in frames}) == 1:
            continue  # the same before and after: nothing happens
        first, second = (*names, NONE)[:2]
        background = _agreed({seen["background"] for seen, _ in frames})
        return {"event": name, "first": first, "second": second, "background": background}
    return None


def is_empty(picture: Image.Image) -> bool:
    """Whether a picture is a background without objects."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    return float(np.abs(pixels - pixels.mean(axis=1, keepdims=True)).mean()) < EMPTY_DEVIATION


def _is_laid_out(seen: Mapping[str, str] | None, scene: Mapping[str, str] | None) -> bool:
    """Whether a frame has objects of the sizes and at the places of a scene, whichever they are."""
    if seen is None or scene is None:
        return seen is scene
    return all(seen[key] == scene[key] for key in ("first_size", "second_size", "place"))


def _agreed(values: set[str]) -> str:
    return values.pop() if len(values) == 1 else UNCLEAR
