"""`anygpt merge` and `anygpt average`: two models as one model folder."""

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


def average(before: Path, after: Path, *, share: float, out: Path) -> None:
    """Write the weighted average of a model and of what was trained from it, such as stage 1's and stage 2's.

    It has often lost less of what the first could, and learned as much.

    Args:
        before: Folder of the model that the training started from.
        after: Folder of the trained model.
        share: How much of the trained model, from 0 to 1.
        out: New folder for the model.
    """
    from anygpt.training.merge import average_models

    print(average_models(before, after, share=share, out=out))
