"""`anygpt train-tokenizer`: train one of the small tokenizers on the synthetic world."""

import logging
from pathlib import Path


def train_tokenizer(name: str, *, config: Path | None = None, out: Path | None = None) -> None:
    """Train the tokenizer NAME (seed, speechtokenizer, soundstorm or encodec) and export it.

    The same command goes on where a stopped run ended. The output folder receives checkpoint.pt, log.jsonl,
    samples/ (pictures and sounds made on the way) and export/, the tokenizer folder.

    Args:
        name: What to train.
        config: YAML file with the sections `loop` and `recipe`; without it config/tokenizers/NAME-mini.yaml.
        out: Output folder; without it runs/NAME.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from anygpt.paths import resource
    from anygpt.training import tokenizer_loop

    tokenizer_loop.check_name(name)
    config = config or resource("config", f"tokenizers/{name}-mini.yaml")
    print(tokenizer_loop.train_tokenizer(name, config=config, out=out or Path("runs") / name))
