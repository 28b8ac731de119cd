"""The objects of the image world: emoji by name, drawn with the Noto Color Emoji font."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anygpt.errors import AnyGPTError

FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
)
BITMAP_SIZE = 109
"""The only strike of the font, in pixels per em."""

OBJECTS: dict[str, str] = {
    # animals
    "dog": "🐶", "cat": "🐱", "mouse": "🐭", "rabbit": "🐰", "fox": "🦊", "bear": "🐻", "panda": "🐼",
    "tiger": "🐯", "lion": "🦁", "cow": "🐮", "pig": "🐷", "frog": "🐸", "monkey": "🐵", "chicken": "🐔",
    "penguin": "🐧", "bird": "🐦", "duck": "🦆", "owl": "🦉", "wolf": "🐺", "horse": "🐴", "unicorn": "🦄",
    "bee": "🐝", "butterfly": "🦋", "snail": "🐌", "ladybug": "🐞", "turtle": "🐢", "snake": "🐍",
    "octopus": "🐙", "crab": "🦀", "fish": "🐟", "tropical fish": "🐠", "dolphin": "🐬", "whale": "🐳",
    "crocodile": "🐊", "elephant": "🐘", "camel": "🐫", "sheep": "🐑", "hedgehog": "🦔", "koala": "🐨",
    # food
    "red apple": "🍎", "green apple": "🍏", "pear": "🍐", "orange": "🍊", "lemon": "🍋", "banana": "🍌",
    "watermelon": "🍉", "grapes": "🍇", "strawberry": "🍓", "cherries": "🍒", "peach": "🍑", "pineapple": "🍍",
    "coconut": "🥥", "tomato": "🍅", "eggplant": "🍆", "carrot": "🥕", "corn": "🌽", "mushroom": "🍄",
    "bread": "🍞", "cheese": "🧀", "egg": "🥚", "hamburger": "🍔", "pizza": "🍕", "hot dog": "🌭",
    "ice cream": "🍦", "doughnut": "🍩", "cookie": "🍪", "cake": "🎂", "lollipop": "🍭", "coffee": "☕",
    # vehicles and places
    "car": "🚗", "taxi": "🚕", "bus": "🚌", "police car": "🚓", "ambulance": "🚑", "fire engine": "🚒",
    "truck": "🚚", "tractor": "🚜", "bicycle": "🚲", "train": "🚂", "airplane": "✈️", "helicopter": "🚁",
    "rocket": "🚀", "ship": "🚢", "sailboat": "⛵", "house": "🏠", "castle": "🏰", "tent": "⛺",
    # things
    "soccer ball": "⚽", "basketball": "🏀", "football": "🏈", "tennis racket": "🎾", "guitar": "🎸",
    "trumpet": "🎺", "violin": "🎻", "drum": "🥁", "piano": "🎹", "clock": "⏰", "camera": "📷",
    "telephone": "☎️", "computer": "💻", "book": "📕", "pencil": "✏️", "scissors": "✂️", "key": "🔑",
    "lock": "🔒", "hammer": "🔨", "light bulb": "💡", "candle": "🕯️", "balloon": "🎈", "gift": "🎁",
    "crown": "👑", "ring": "💍", "umbrella": "☂️", "hat": "🎩", "shirt": "👕", "dress": "👗", "shoe": "👟",
    "bomb": "💣", "magnet": "🧲", "trophy": "🏆", "bell": "🔔", "anchor": "⚓",
    # nature and signs
    "sun": "☀️", "moon": "🌙", "star": "⭐", "cloud": "☁️", "rainbow": "🌈", "snowman": "⛄", "fire": "🔥",
    "tree": "🌳", "pine tree": "🌲", "palm tree": "🌴", "cactus": "🌵", "rose": "🌹", "sunflower": "🌻",
    "tulip": "🌷", "red heart": "❤️", "blue heart": "💙", "ghost": "👻", "robot": "🤖", "alien": "👽",
    "skull": "💀", "pumpkin": "🎃", "smiling face": "😀", "angry face": "😡", "crying face": "😭",
}  # fmt: skip
"""Name in captions -> the emoji drawn for it."""

WITHOUT_ARTICLE = frozenset({"grapes", "cherries", "scissors", "bread", "cheese", "corn", "coffee", "fire"})
"""Names that captions use without `a` or `an`."""


def with_article(name: str, adjective: str = "") -> str:
    """`an owl`, `a small owl`, `small grapes`, `the sun` never: names take the indefinite article or none."""
    words = f"{adjective} {name}".strip()
    if name in WITHOUT_ARTICLE:
        return words
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('uni') else 'a'} {words}"


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    for path in FONT_PATHS:
        if Path(path).is_file():
            return ImageFont.truetype(path, BITMAP_SIZE)
    raise AnyGPTError("the font Noto Color Emoji is missing; install it with: apt-get install fonts-noto-color-emoji")


@lru_cache(maxsize=4096)
def glyph(name: str, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture of one object, `size_px` squared: premultiplied RGB float32 [S, S, 3] in 0..255, alpha [S, S, 1]."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), OBJECTS[name], font=_font(), embedded_color=True)
    box = canvas.getbbox()
    assert box is not None, name
    picture = canvas.crop(box)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    pixels = np.asarray(square.convert("RGBa").resize((size_px, size_px), Image.Resampling.BOX), np.float32)
    return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3:] / 255.0)
