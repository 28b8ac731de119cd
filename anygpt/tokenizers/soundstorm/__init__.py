"""SoundStorm: the acoustic levels of speech from its semantic level and a voice prompt."""

from anygpt.tokenizers.soundstorm.checkpoint import codec_fingerprint, load_soundstorm, save_soundstorm
from anygpt.tokenizers.soundstorm.config import SoundStormConfig
from anygpt.tokenizers.soundstorm.model import SoundStorm

__all__ = ["SoundStorm", "SoundStormConfig", "codec_fingerprint", "load_soundstorm", "save_soundstorm"]
