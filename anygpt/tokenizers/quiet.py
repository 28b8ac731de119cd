"""Models of other libraries, loaded without what those print."""

import contextlib
import importlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def loading_quietly() -> Iterator[None]:
    """Within the block transformers and diffusers show neither bars nor tables of keys, and warn of nothing.

    What is wrong with a file becomes an error of ours, which is one line.
    """
    with contextlib.ExitStack() as stack:
        for library in ("transformers", "diffusers"):
            if library not in sys.modules:
                continue
            logging = importlib.import_module(f"{library}.utils.logging")
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            if logging.is_progress_bar_enabled():
                stack.callback(logging.enable_progress_bar)
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        yield
