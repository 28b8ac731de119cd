"""What tests of the world need of the machine."""

import pytest

from anygpt.errors import AnyGPTError
from anygpt.world import emoji


def _font_is_here() -> bool:
    try:
        emoji._font()
    except AnyGPTError:
        return False
    return True


needs_font = pytest.mark.skipif(not _font_is_here(), reason="the apt package fonts-noto-color-emoji is missing")
