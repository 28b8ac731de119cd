"""AnyGPT: one language model over text and the discrete codes of images, speech and music."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT

__version__ = "0.1.0"
__all__ = ["AnyGPT", "__version__"]


def __getattr__(name: str) -> Any:
    # Looked up on first use, so that `import anygpt` and its small modules don't load torch.
    if name == "AnyGPT":
        from anygpt.engine import AnyGPT

        return AnyGPT
    raise AttributeError(f"module 'anygpt' has no attribute '{name}'")
