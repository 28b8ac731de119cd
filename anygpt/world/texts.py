"""The texts of the world, for learning the small model's text tokenizer."""

import random
from collections.abc import Iterator
from pathlib import Path

from anygpt.prompts.tasks import TaskPrompts
from anygpt.text_tokenizer import TextTokenizer, train_text_tokenizer
from anygpt.world import images, music, sentences
from anygpt.world.emoji import OBJECTS


def world_texts(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts: captions, prompts, sentences, and every wording of the instructions once per hundred."""
    rng = random.Random(f"texts/{seed}")
    prompts = TaskPrompts.load()
    wordings = [
        wording
        for modality in ("image", "speech", "music")
        for direction in ("x2text", "text2x")
        for wording in prompts.wordings(modality, direction).all
    ]
    attributes = music.combinations()
    for index in range(count):
        if index % 100 == 0:
            yield from wordings
            yield from OBJECTS
        scene = images.random_scene(rng)
        yield images.caption_variant(scene, rng)
        yield music.caption_variant(rng.choice(attributes), rng)
        for _ in range(2):
            yield sentences.typed_variant(sentences.random_sentence(rng), rng)


def learn_text_tokenizer(path: Path, *, pieces: int, seed: int = 0, count: int = 5000) -> TextTokenizer:
    """Learn and write a sentencepiece model of `pieces` pieces."""
    return train_text_tokenizer(world_texts(count, seed), path, pieces=pieces)
