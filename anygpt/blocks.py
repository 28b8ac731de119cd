"""Finding the blocks of media codes among a checkpoint's added tokens."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from anygpt.errors import CheckpointError
from anygpt.modality import ModalitySpec
from anygpt.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class Block:
    """Where one modality lives in the vocabulary."""

    spec: ModalitySpec
    first_id: int
    start_id: int
    end_id: int
    parts: "tuple[Block, ...]" = ()
    """Those of `spec.parts`, whose codes stand in its spans; it has none itself."""

    @property
    def size(self) -> int:
        """Number of code ids, all levels together."""
        return self.spec.num_tokens

    @property
    def ids(self) -> range:
        """All code ids; the tags are not among them."""
        return range(self.first_id, self.first_id + self.size)

    def level_ids(self, level: int) -> range:
        """The code ids of one level."""
        first = self.first_id + level * self.spec.codebook_size
        return range(first, first + self.spec.codebook_size)


def checked_tokens(text: TextTokenizer, tokens: Mapping[str, int], source: str) -> dict[str, int]:
    """The added tokens beyond the text pieces. Raises CheckpointError for an id that is taken or used twice."""
    by_id: dict[int, str] = {}
    for token, index in tokens.items():
        if index < 0 or (index < text.size and text.piece(index) != token):
            raise CheckpointError(
                f"{source}: '{token}' has id {index}, which belongs to the text vocabulary of {text.size} pieces; "
                f"the file doesn't fit tokenizer.model"
            )
        if by_id.setdefault(index, token) != token:
            raise CheckpointError(f"{source}: '{token}' and '{by_id[index]}' share id {index}")
    return {token: index for token, index in tokens.items() if index >= text.size}


def find_block(
    spec: ModalitySpec,
    tokens: Mapping[str, int],
    sizes: Mapping[str, Mapping[str, Any]] | None,
    source: str,
    found: Mapping[str, Block],
) -> Block | None:
    """Where the codes and tags of `spec` are, at this checkpoint's sizes; None when it has none of them.

    The length of the block gives the codebook size and the row the frame rate unless `sizes` has them; `found` are
    the blocks of other modalities, for one that is made of them. Raises CheckpointError for a block with a hole, a
    missing tag or part, or sizes that don't fit.
    """
    if spec.parts:
        return _block_of_parts(spec, tokens, (sizes or {}).get(spec.name, {}), source, found)
    count = 0
    first_id = tokens.get(spec.code_token(0))
    while first_id is not None and tokens.get(spec.code_token(count)) == first_id + count:
        count += 1
    if spec.start not in tokens and count == 0:
        return None
    for tag in (spec.start, spec.end, spec.code_token(0)):
        if tag not in tokens:
            raise CheckpointError(f"{source}: '{tag}' of modality '{spec.name}' is missing")
    assert first_id is not None
    head = f"<{spec.prefix}"
    shape = re.compile(f"{re.escape(head)}[0-9]+>")
    if sum(token.startswith(head) and shape.fullmatch(token) is not None for token in tokens) != count:
        expected = f"expected {spec.code_token(count)} at id {first_id + count}"
        raise CheckpointError(f"{source}: the {spec.name} codes are not in one block; {expected}")
    if sizes and spec.name in sizes:
        levels, codebook = sizes[spec.name]["num_codebooks"], sizes[spec.name]["codebook_size"]
    else:
        levels, codebook = spec.num_codebooks, count // spec.num_codebooks
    if levels * codebook != count:
        raise CheckpointError(
            f"{source}: {count} {spec.name} codes in a row from id {first_id}; expected {levels} levels of equal size"
            + (f", {codebook} each, as anygpt.json says" if sizes and spec.name in sizes else "")
        )
    rate_hz = (sizes or {}).get(spec.name, {}).get("frame_rate_hz")
    own = spec.with_codebooks(codebook_size=codebook, num_codebooks=levels, frame_rate_hz=rate_hz)
    return Block(own, first_id, tokens[spec.start], tokens[spec.end])


def _block_of_parts(
    spec: ModalitySpec, tokens: Mapping[str, int], size: Mapping[str, Any], source: str, found: Mapping[str, Block]
) -> Block | None:
    if spec.start not in tokens:
        return None
    if spec.end not in tokens:
        raise CheckpointError(f"{source}: '{spec.end}' of modality '{spec.name}' is missing")
    if spec.parts[0].name not in found:
        raise CheckpointError(f"{source}: '{spec.name}' is made of '{spec.parts[0].name}' codes, which are missing")
    # The sizes may be those of frames alone: a model may have clips without sound, and sounds that belong to no clip.
    specs = {part.name: found[part.name].spec for part in spec.parts if part.name in found}
    shapes = [spec.with_parts(specs), spec.with_parts({spec.parts[0].name: specs[spec.parts[0].name]})]
    wanted = size.get("num_codebooks", 1) * size.get("codebook_size", shapes[0].codebook_size)
    own = next((shape for shape in shapes if shape.codebook_size == wanted), None)
    if own is None:
        raise CheckpointError(
            f"{source}: the parts of '{spec.name}' have {shapes[0].codebook_size} codes together, "
            f"anygpt.json says {wanted}"
        )
    own = replace(own, frame_rate_hz=size.get("frame_rate_hz") or spec.frame_rate_hz)
    start_id = tokens[spec.start]
    return Block(own, start_id, start_id, tokens[spec.end], tuple(found[part.name] for part in own.parts))


def marker_pattern(marked: Iterable[str], blocks: Iterable[Block]) -> re.Pattern[str]:
    """One group that matches every marker; a run of codes of one modality, by its shape, as a whole.

    A code is written without leading zeros; nine digits are more than any block has.
    """
    shapes = [f"<{re.escape(block.spec.prefix)}(?:0|[1-9][0-9]{{0,8}})>" for block in blocks]
    code = re.compile("|".join(shapes))
    literals = [token for token in marked if not code.fullmatch(token)]
    literals.sort(key=len, reverse=True)
    # `x(?:x)*` tells the search which characters a match can begin with; `(?:x)+` would try at every one.
    runs = [f"{shape}(?:{shape})*" for shape in shapes]
    return re.compile("(" + "|".join([*runs, *map(re.escape, literals)]) + ")")
