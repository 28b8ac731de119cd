"""What may stand as text in a training file."""

import re
from functools import cache

from anygpt.added_tokens import CHAT_CONTROLS, PRETRAINING_CONTROLS
from anygpt.errors import AnyGPTError
from anygpt.modality import MODALITIES


def checked_text(text: str, where: str) -> str:
    """The text without space at its ends; `where` begins every message.

    Raises AnyGPTError for a control token or code in it, which a reader of the file would take for a real one, and for
    half a surrogate pair.
    """
    found = _control_pattern().search(text)
    if found:
        raise AnyGPTError(f"{where} holds '{found[0]}', which training files reserve for control tokens and codes")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise AnyGPTError(f"{where} holds half a surrogate pair, which is no character")
    return text.strip()


@cache
def _control_pattern() -> re.Pattern[str]:
    tags = [tag for spec in MODALITIES.values() for tag in (spec.start, spec.end)]
    literals = [*PRETRAINING_CONTROLS, *CHAT_CONTROLS, "<s>", "</s>", "<unk>", *tags]
    codes = [f"<{re.escape(spec.prefix)}[0-9]+>" for spec in MODALITIES.values()]
    return re.compile("|".join([*map(re.escape, literals), *codes]))
