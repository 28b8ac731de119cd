"""SpeechTokenizer by the method of its paper; level 1 learns from phonemes instead of HuBERT.

From the quantized vectors of level 1 a linear layer must tell the phoneme of the frame and of its neighbours; the
other levels learn to rebuild the rest. In SEANet all levels code one encoder's output, as in the paper. In the spectral
codec level 1 comes from a branch of its own that only ever learns what is said, also when the spectrum is warped in
frequency, filtered and noisy, and the disturbed frame must choose the same code as the clean one.
Source: SpeechTokenizer (Zhang et al. 2023, section 3.2).

Shape suffixes: B batch, L samples, T frames, C channels, N frames of all items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anygpt.config import from_dict
from anygpt.errors import ConfigError
from anygpt.media import Audio, save_audio
from anygpt.training.recipes import audio
from anygpt.training.recipes.backbones import CodecBackbone, Disturbance, SemanticBackbone, build_backbone
from anygpt.training.tokenizer_loop import TokenizerRecipe
from anygpt.world.speech import PHONEMES, RATE_HZ, VOICES, SpeechSample, SpeechWorld, frame_labels, render

_MARGIN_FRAMES = 8
"""How far a crop may begin before the utterance or end after it."""


@dataclass(frozen=True, kw_only=True)
class SpeechCodecConfig:
    """The `recipe` section of a speech codec's YAML file."""

    backbone: str = "spectral"
    """A name in `backbones.BACKBONES`."""
    codec: dict[str, Any]
    """Fields of the backbone's own configuration."""
    seed: int = 0
    batch_size: int = 32
    crop_frames: int = 80
    pool_size: int = 256
    """Utterances in memory, from which crops are drawn."""
    fresh_per_step: int = 8
    """Utterances that each step renders anew."""
    quantize_from: int = 100
    """Step at which the codebooks are placed; the network runs continuously before."""
    semantic_until: int | None = 10_000
    """Step from which level 1 is frozen, so that the other levels and the decoder settle on its codes; null: never."""
    disturb: bool = True
    """Whether level 1 also learns from disturbed sounds."""
    neighbour_frames: int = 3
    neighbour_weight: float = 0.2
    commitment_weight: float = 0.25
    agreement_weight: float = 1.0
    """Pull of a disturbed frame towards the code of the clean one."""
    semantic_restart_below: float = 0.0
    """Restart of level 1's unused codes; without it the codebook may shrink to what the phonemes need."""
    semantic_decay: float = 0.98
    quantizer_dropout: float = 0.5
    semantic_only: float = 0.1
    """Share of items that are rebuilt from level 1 alone."""
    loss_windows: tuple[int, ...] = (2048, 1024, 512, 256)
    warps: tuple[float, float] = (0.88, 1.14)
    validation_sentences: int = 24
    default_voice: str = "clara"
    """The world's voice that speaks when a prompt names none."""
    default_voice_text: str = "good morning, this is the voice that you hear when you ask for no other"


class _Training(nn.Module):
    """The codec with the heads that only training needs: the phoneme of this frame, of one before, of one after."""

    codec: SemanticBackbone

    def __init__(self, codec: SemanticBackbone):
        super().__init__()
        self.codec = codec
        self.heads = nn.ModuleList(nn.Linear(codec.semantic_width, len(PHONEMES)) for _ in range(3))

    def logits(self, first_BTC: Tensor) -> list[Tensor]:
        """Of level-1 vectors [B, T, C]: [B, T, phonemes] of each head."""
        features = self.codec.semantic_features(first_BTC)
        return [head(features) for head in self.heads]


@dataclass(frozen=True)
class _Utterance:
    """A waveform float32 [L] and the phoneme of each of its frames, int64 [T]; phoneme 0 is silence."""

    wave: Tensor
    phonemes: Tensor

    @classmethod
    def of(cls, sample: SpeechSample, frame_rate_hz: float) -> "_Utterance":
        return cls(torch.from_numpy(sample.wave), torch.from_numpy(frame_labels(sample, frame_rate_hz)))


class SpeechCodecRecipe(TokenizerRecipe):
    """Trains a codec whose first level says which phonemes are spoken."""

    model: _Training

    def __init__(self, config: dict[str, Any], workdir: Path):
        self.config = from_dict(SpeechCodecConfig, config, "recipe")
        codec = _checked(build_backbone(self.config.backbone, self.config.codec), self.config)
        self.model = _Training(codec)
        codec.quantizer.quantizer_dropout = self.config.quantizer_dropout
        codec.quantizer.codebooks[0].restart_below = self.config.semantic_restart_below
        codec.quantizer.codebooks[0].decay = self.config.semantic_decay
        world = SpeechWorld("train", self.config.seed)
        self._frame_rate_hz = codec.sample_rate / codec.hop_length
        self._pool = audio.RollingPool(
            lambda i: _Utterance.of(world.sample(i), self._frame_rate_hz),
            size=self.config.pool_size,
            fresh=self.config.fresh_per_step,
        )
        self._loss = audio.SpectralLoss(self.config.loss_windows, sample_rate=codec.sample_rate)
        self._validation: dict[str, list[_Utterance]] = {}
        self._spoken_twice: list[tuple[Tensor, ...]] = []

    def batch(self, step: int) -> dict[str, Tensor]:
        """`wav` float32 [B, L]; `phonemes` int64 [B, T]."""
        rng = audio.random_of(self.config.seed, step)
        pool = self._pool.at(step)
        hop, frames = self.model.codec.hop_length, self.config.crop_frames
        waves, labels = [], []
        for i in rng.integers(len(pool), size=self.config.batch_size):
            # Some crops begin before the sound or end after it, as recordings do.
            start = int(rng.integers(-_MARGIN_FRAMES, max(1, len(pool[i].phonemes) - frames + _MARGIN_FRAMES)))
            waves.append(audio.crop(pool[i].wave, start * hop, frames * hop) * float(rng.uniform(0.4, 1.3)))
            labels.append(audio.crop(pool[i].phonemes, start, frames))
        return {"wav": torch.stack(waves), "phonemes": torch.stack(labels)}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        codec = self.model.codec
        codec.quantizer.generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        learns_semantics = self._learns_semantics(step)
        latent_BTC = codec.latent(batch["wav"])
        with torch.set_grad_enabled(learns_semantics):
            semantic_loss, first_BTC, metrics = self._semantic(batch, latent_BTC, step)
        output_BL, commitment = self._reconstruct(latent_BTC, first_BTC, step)
        spectral_loss, mel = self._loss(output_BL, batch["wav"])
        total = spectral_loss + self.config.commitment_weight * commitment
        if learns_semantics:
            total = total + semantic_loss
        return total, {"mel": float(mel), "commitment": float(commitment.detach()), **metrics}

    def _learns_semantics(self, step: int) -> bool:
        return self.config.semantic_until is None or step < self.config.semantic_until

    def _semantic(
        self, batch: dict[str, Tensor], latent_BTC: Tensor, step: int
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Loss of level 1, its vectors [B, T, C] for the decoder (no gradient), numbers to log."""
        codec, config = self.model.codec, self.config
        labels_BT = batch["phonemes"]
        disturbance = None
        if config.disturb and self._learns_semantics(step):
            rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step + 1)
            disturbance = Disturbance(rng, config.warps)
        clean_BTC, disturbed_BTC = codec.semantic_latents(batch["wav"], latent_BTC, disturbance)
        if not self._learns_semantics(step):
            codes_1BT = codec.quantizer.encode(clean_BTC.transpose(1, 2), n_q=1)
            first_BTC = codec.quantizer.decode(codes_1BT).transpose(1, 2)
            return first_BTC.new_zeros(()), first_BTC, {}
        if step < config.quantize_from:
            loss = self._phoneme_loss([clean_BTC, disturbed_BTC], labels_BT)
            return loss, clean_BTC.detach(), {"phoneme_loss": float(loss.detach())}
        quantized_BCT, codes_1BT, commitment, _ = codec.quantizer(clean_BTC.transpose(1, 2), n_q=1)
        quantized_BTC = quantized_BCT.transpose(1, 2)
        first_BTC = codec.quantizer.codebooks[0].lookup(codes_1BT[0])
        metrics = {"perplexity": audio.perplexity(codes_1BT, codec.codebook_size)}
        quantized_disturbed_BTC, agreement = None, clean_BTC.new_zeros(())
        if disturbed_BTC is not None:
            quantized_disturbed_BTC, agreement, agree = self._agreement(disturbed_BTC, codes_1BT[0], first_BTC)
            metrics["agreement"] = agree
        phoneme_loss = self._phoneme_loss([quantized_BTC, quantized_disturbed_BTC], labels_BT)
        loss = phoneme_loss + codec.semantic_scale * (
            config.commitment_weight * commitment + config.agreement_weight * agreement
        )
        predicted_BT = self.model.logits(quantized_BTC.detach())[0].argmax(-1)
        metrics["phoneme_loss"] = float(phoneme_loss.detach())
        metrics["phoneme_accuracy"] = float((predicted_BT == labels_BT).float().mean())
        return loss, first_BTC, metrics

    def _agreement(self, disturbed_BTC: Tensor, codes_BT: Tensor, first_BTC: Tensor) -> tuple[Tensor, Tensor, float]:
        """The disturbed frames quantized, their distance to the clean ones' entries, and how many share the code."""
        book = self.model.codec.quantizer.codebooks[0]
        disturbed_codes_BT = book.nearest(disturbed_BTC.detach().flatten(0, 1)).view_as(codes_BT)
        entries_BTC = book.lookup(disturbed_codes_BT)
        quantized_BTC = disturbed_BTC + (entries_BTC - disturbed_BTC).detach()
        share = float((disturbed_codes_BT == codes_BT).float().mean())
        return quantized_BTC, F.mse_loss(disturbed_BTC, first_BTC), share

    def _phoneme_loss(self, views_BTC: Sequence[Tensor | None], labels_BT: Tensor) -> Tensor:
        """Cross-entropy of the phonemes of the frame itself and, at lower weight, of frames before and after it; the
        mean over those views of level 1 that there are."""
        shift, weight = self.config.neighbour_frames, self.config.neighbour_weight
        losses = []
        for x_BTC in views_BTC:
            if x_BTC is not None:
                here, before, after = self.model.logits(x_BTC)
                loss = _cross_entropy(here, labels_BT)
                loss = loss + weight * _cross_entropy(before[:, shift:], labels_BT[:, :-shift])
                losses.append(loss + weight * _cross_entropy(after[:, :-shift], labels_BT[:, shift:]))
        return torch.stack(losses).mean()

    def _reconstruct(self, latent_BTC: Tensor, first_BTC: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The signal rebuilt from all levels, and the commitment loss of levels 2 and up."""
        codec = self.model.codec
        part_BTC = codec.semantic_part(first_BTC.detach())
        # Without `detach` the gradient of level 1's part through the sum and that through the rest would cancel out.
        rest_BTC = latent_BTC - part_BTC.detach()
        commitment = rest_BTC.new_zeros(())
        if step >= self.config.quantize_from:
            rest_BCT, _, commitment, _ = codec.quantizer(rest_BTC.transpose(1, 2), st=1)
            keep_B = torch.rand(len(rest_BTC), generator=codec.quantizer.generator) >= self.config.semantic_only
            rest_BTC = rest_BCT.transpose(1, 2) * keep_B[:, None, None].to(rest_BTC.device)
        return codec.synthesize(part_BTC + rest_BTC), commitment

    def validate(self) -> dict[str, float]:
        """What level 1 knows of the phonemes, how it uses its codes, and reconstruction by number of levels.

        `same_codes`: how far two voices that say the same sentence get the same level-1 codes, repeats removed
        (1 - normalised edit distance).
        """
        numbers = {"same_codes": self._agreement_of_voices()}
        for group, samples in self._validation_samples().items():
            numbers |= {f"{name}_{group}": value for name, value in self._judge_level1(samples).items()}
        waves = [sample.wave for samples in self._validation.values() for sample in samples[:8]]
        return numbers | audio.reconstruction_quality(self.model.codec, waves, (1, 2, 4, 8))

    def sample_sheet(self, folder: Path) -> None:
        waves = [sample.wave for samples in self._validation_samples().values() for sample in samples[:2]]
        audio.write_sound_sheet(self.model.codec, waves, folder, levels=(1, 2, self.model.codec.n_q))

    def export(self, folder: Path) -> None:
        """The tokenizer folder, with a recording of the voice that speaks when none is asked for.

        `soundstorm` is left null: it is trained on this codec's codes and linked afterwards.
        """
        folder.mkdir(parents=True, exist_ok=True)
        voice = render(self.config.default_voice_text, self.config.default_voice)
        save_audio(folder / "voice.wav", Audio(voice.wave[None], RATE_HZ))
        fields = {"class": "speechtokenizer", "modality": "speech", "default_voice": "voice.wav", "soundstorm": None}
        audio.export_codec(self.model.codec, folder, fields)

    def keeps_float32(self, name: str) -> bool:
        return self.model.codec.keeps_float32(name)

    def uses_muon(self, name: str, parameter: Tensor) -> bool:
        return self.model.codec.uses_muon(name)

    def _judge_level1(self, samples: Sequence[_Utterance]) -> dict[str, float]:
        codec = self.model.codec
        codes = [audio.encode(codec, sample.wave)[0] for sample in samples]
        codes_N = torch.cat(codes)
        labels_N = torch.cat([sample.phonemes for sample in samples])
        guesses_N = self.model.logits(codec.quantizer.codebooks[0].lookup(codes_N.to(codec.device)))[0].argmax(-1).cpu()
        joint = audio.perplexity(labels_N * codec.codebook_size + codes_N, codec.codebook_size * len(PHONEMES))
        return {
            "phoneme_accuracy": float((guesses_N == labels_N).float().mean()),
            "codes_used": float(len(codes_N.unique())),
            "perplexity": audio.perplexity(codes_N, codec.codebook_size),
            "perplexity_given_phoneme": joint / audio.perplexity(labels_N, len(PHONEMES)),
            "run_length": len(codes_N) / sum(int((c[1:] != c[:-1]).sum()) + 1 for c in codes),
        }

    def _agreement_of_voices(self) -> float:
        if not self._spoken_twice:
            world = SpeechWorld("heldout_sentences", self.config.seed)
            names = list(VOICES)
            for i in range(self.config.validation_sentences):
                pair = (names[i % len(names)], names[(7 * i + 3) % len(names)])
                text = world.sentence(i)
                self._spoken_twice.append(tuple(torch.from_numpy(world.render(text, v).wave) for v in pair))
        scores = []
        for waves in self._spoken_twice:
            first, second = (audio.encode(self.model.codec, wave)[0].unique_consecutive().tolist() for wave in waves)
            scores.append(1 - audio.edit_distance(first, second) / max(len(first), len(second)))
        return float(np.mean(scores))

    def _validation_samples(self) -> dict[str, list[_Utterance]]:
        if not self._validation:
            count = self.config.validation_sentences
            for group, split in (("seen", "heldout_sentences"), ("unseen", "heldout_voices")):
                world = SpeechWorld(split, self.config.seed)
                self._validation[group] = [_Utterance.of(world.sample(i), self._frame_rate_hz) for i in range(count)]
        return self._validation


def _checked(codec: CodecBackbone, config: SpeechCodecConfig) -> SemanticBackbone:
    """The codec, if level 1 of it can learn what is said as the configuration asks for; else ConfigError."""
    if not isinstance(codec, SemanticBackbone) or not codec.is_semantic:
        raise ConfigError(
            f"recipe: backbone '{config.backbone}' as configured has no level 1 to distil; "
            "expected seanet, or spectral with codec.semantic: true"
        )
    if not codec.has_semantic_branch and (config.disturb or config.semantic_until is not None):
        raise ConfigError(
            f"recipe: backbone '{config.backbone}' has one encoder for all levels: level 1 can't be frozen or learn "
            "from disturbed sounds; set disturb: false and semantic_until: null"
        )
    if codec.sample_rate != RATE_HZ:
        raise ConfigError(f"recipe: codec.sample_rate is {codec.sample_rate}, expected the world's {RATE_HZ}")
    return codec


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
