"""`anygpt merge`: an adapter and its base as one model folder."""

from pathlib import Path


def merge(adapter: Path, *, out: Path) -> None:
    """Merge a LoRA adapter into its base and write a whole model.

    An adapter folder runs as it is (`anygpt chat --model-name-or-path ADAPTER`); other programs may want whole weights.

    Args:
        adapter: Folder of the adapter, such as OUT/model of a stage 2 run with a section `lora`.
        out: New folder for the model.
    """
    from anygpt.training.merge import merge_adapter

    print(merge_adapter(adapter, out))
