"""Public sets in miniature, laid out as they are published, and tiny random networks that score answers."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import torch
from fixtures_media import picture_bytes, save_noise

CAPTIONS = ("a dog on a red field", "A small dog, running.", "the dog's ball")


def build_sets(data: Path) -> Path:
    """All the sets that `anygpt.evaluation.benchmarks.sets` reads, two or three items each."""
    for build in (
        _coco,
        _librispeech,
        _vctk,
        _musiccaps,
        _vqav2,
        _gqa,
        _scienceqa,
        _textvqa,
        _pope,
        _mme,
        _mmbench,
        _seed,
        _refcoco,
    ):
        build(data)
    return data


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_bytes(seed))


def _coco(data: Path) -> None:
    images, listed, annotations = [], [], []
    for number, split in enumerate(("test", "test", "val"), start=1):
        name = f"COCO_val2014_{number:012d}.jpg"
        _picture(data / "coco" / "val2014" / name, number)
        sentences = [{"raw": f"{caption} {number}", "tokens": []} for caption in CAPTIONS]
        images.append(
            {"filepath": "val2014", "filename": name, "split": split, "cocoid": number, "sentences": sentences}
        )
        listed.append({"id": number, "file_name": name})
        annotations += [{"image_id": number, "caption": f"{caption} {number}\n"} for caption in CAPTIONS]
    _write(data / "coco" / "dataset_coco.json", {"images": images, "dataset": "coco"})
    _write(data / "coco" / "annotations" / "captions_val2014.json", {"images": listed, "annotations": annotations})


def _librispeech(data: Path) -> None:
    folder = data / "LibriSpeech" / "test-clean" / "19" / "198"
    for number in range(2):
        save_noise(folder / f"19-198-{number:04d}.flac", number)
    _write(folder / "19-198.trans.txt", "19-198-0000 THE DOG RAN\n19-198-0001 IT'S A CAT\n")


def _vctk(data: Path) -> None:
    root = data / "VCTK-Corpus-0.92"
    for speaker in ("p225", "p226"):
        for number in range(1, 4):
            name = f"{speaker}_{number:03d}"
            _write(root / "txt" / speaker / f"{name}.txt", f"Please call Stella {number}.\n")
            save_noise(root / "wav48_silence_trimmed" / speaker / f"{name}_mic1.flac", number, 1.2, 48_000)
    _write(root / "txt" / "p315" / "p315_001.txt", "A speaker whose recordings are lost.")


def _musiccaps(data: Path) -> None:
    rows = [("a1", "True"), ("b2", "False"), ("c3", "True")]
    columns = ("ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption", "author_id")
    lines = [",".join((*columns, "is_balanced_subset", "is_audioset_eval"))]
    lines += [f'{name},30,40,/m/0,"[\'calm\']","slow piano, {name}",4,False,{kind}' for name, kind in rows]
    _write(data / "musiccaps" / "musiccaps-public.csv", "\n".join(lines) + "\n")
    save_noise(data / "musiccaps" / "clips" / "a1.wav", 1)
    save_noise(data / "musiccaps" / "clips" / "b2.wav", 2)


def _vqav2(data: Path) -> None:
    questions = [{"image_id": number, "question": f"Is {number} a dog?", "question_id": number} for number in (1, 2)]
    annotations = [
        {
            "question_id": number,
            "image_id": number,
            "answer_type": kind,
            "answers": [{"answer": answer, "answer_id": i} for i in range(10)],
        }
        for number, kind, answer in ((1, "yes/no", "yes"), (2, "other", "a dog"))
    ]
    _write(data / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    _write(data / "vqav2" / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def _gqa(data: Path) -> None:
    _write(
        data / "gqa" / "testdev_balanced_questions.json",
        {str(number): {"imageId": f"n{number}", "question": "What?", "answer": "dog"} for number in (1, 2)},
    )
    for number in (1, 2):
        _picture(data / "gqa" / "images" / f"n{number}.jpg", number)


def _scienceqa(data: Path) -> None:
    problem = {"question": "Which?", "choices": ["cat", "dog"], "answer": 1, "hint": "Look.", "image": "image.png"}
    _write(data / "scienceqa" / "problems.json", {"1": problem, "2": {**problem, "image": None}, "3": problem})
    _write(data / "scienceqa" / "pid_splits.json", {"train": ["3"], "test": ["1", "2"]})
    _picture(data / "scienceqa" / "images" / "test" / "1" / "image.png", 1)


def _textvqa(data: Path) -> None:
    entry = {"image_id": "abc", "question": "what does it say?", "question_id": 1, "answers": ["stop"] * 10}
    _write(data / "textvqa" / "TextVQA_0.5.1_val.json", {"data": [entry, {**entry, "question_id": 2}]})
    _picture(data / "textvqa" / "train_images" / "abc.jpg", 3)


def _pope(data: Path) -> None:
    for kind in ("random", "popular", "adversarial"):
        lines = [
            json.dumps(
                {
                    "question_id": number,
                    "image": f"COCO_val2014_{1:012d}.jpg",
                    "text": "Is there a dog?",
                    "label": label,
                }
            )
            for number, label in enumerate(("yes", "no"), start=1)
        ]
        _write(data / "pope" / f"coco_pope_{kind}.json", "\n".join(lines) + "\n")


def _mme(data: Path) -> None:
    root = data / "MME_Benchmark_release_version"
    lines = "Is it a dog? Please answer yes or no.\tYes\nIs it a cat? Please answer yes or no.\tNo\n"
    _write(root / "existence" / "0001.txt", lines)
    _picture(root / "existence" / "0001.jpg", 1)
    _write(root / "posters" / "questions_answers_YN" / "tt01.txt", lines)
    _picture(root / "posters" / "images" / "tt01.png", 2)
    _write(root / "code_reasoning" / "0020.txt", lines)
    _picture(root / "code_reasoning" / "0020.png", 3)


def _mmbench(data: Path) -> None:
    path = data / "mmbench" / "mmbench_dev_20230712.tsv"
    path.parent.mkdir(parents=True)
    columns = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "split")
    picture = base64.b64encode(picture_bytes(4)).decode()
    rows = [
        ("241", "Which is it?", "", "cat", "dog", "cow", "", "B", "object", picture, "x", "dev"),
        ("1000241", "Which is it?", "", "dog", "cat", "cow", "", "A", "object", picture, "x", "dev"),
        ("252", "Which one?", "A hint.", "up", "down", "", "", "A", "relation", "241", "x", "dev"),
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, dialect=csv.excel_tab)
        writer.writerows([columns, *rows])


def _seed(data: Path) -> None:
    entry = {
        "answer": "C", "choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four",
        "data_id": "454426_1", "data_type": "image", "question": "How many?", "question_id": "1", "question_type_id": 5,
    }  # fmt: skip
    content = {"questions": [entry, {**entry, "data_type": "video"}], "question_type": {"Instances Counting": 5}}
    _write(data / "SEED-Bench" / "SEED-Bench.json", content)
    _picture(data / "SEED-Bench" / "SEED-Bench-image" / "454426_1", 5)


def _refcoco(data: Path) -> None:
    """RefCOCO in MiniGPT-v2's layout, RefCOCO+ in the original one but for the pickle, RefCOCOg in both."""
    rows = [
        {
            "img_id": "COCO_train2014_000000000007_1",
            "height": 48,
            "width": 64,
            "sents": "the dog",
            "bbox": [8, 12, 32, 24],
        },
        {
            "img_id": "COCO_train2014_000000000008_0",
            "height": 48,
            "width": 64,
            "sents": ["a cat"],
            "bbox": [0, 0, 64, 48],
        },
    ]
    for split in ("val", "testA"):
        _write(data / "refcoco" / f"refcoco_{split}.json", rows)
    _write(data / "refcocog" / "refcocog_test.json", rows[:1])
    sentences = [{"raw": f"DOG {number}", "sent": f"dog {number}", "sent_id": number} for number in range(2)]
    instances = {
        "images": [{"id": 7, "width": 64, "height": 48, "file_name": "COCO_train2014_000000000007.jpg"}],
        "annotations": [{"id": 11, "image_id": 7, "bbox": [8.0, 12.0, 32.0, 24.0], "category_id": 18}],
    }
    references = [
        {"ref_id": number, "ann_id": 11, "image_id": 7, "split": split, "file_name": "x_1.jpg", "sentences": sentences}
        for number, split in enumerate(("train", "testB"))
    ]
    for name, split_by in (("refcoco+", "unc"), ("refcocog", "umd")):
        _write(data / name / "instances.json", instances)
        _write(data / name / f"refs({split_by}).json", references)
    for number in (7, 8):
        _picture(data / "coco" / "train2014" / f"COCO_train2014_{number:012d}.jpg", number)


def build_scorers(folder: Path) -> dict[str, Path]:
    """Kind of scorer -> folder of a random network of it."""
    torch.manual_seed(0)
    builds = {"clip": _clip, "clap": _clap, "speaker": _speaker, "whisper": _whisper}
    for kind, build in builds.items():
        build(folder / kind)
    return {kind: folder / kind for kind in builds}


def _word_tokenizer(folder: Path, **special: str) -> int:
    """Save a tokenizer of a few words; returns the size of its vocabulary."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = [*special.values(), "a", "dog", "on", "red", "field", "slow", "piano"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return len(vocabulary)


_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    size = _word_tokenizer(folder, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    config = CLIPConfig(
        text_config={**_TEXT, "vocab_size": size, "max_position_embeddings": 12, "eos_token_id": 3},
        vision_config={**_TEXT, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def _clap(folder: Path) -> None:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    size = _word_tokenizer(folder, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    config = ClapConfig(
        text_config={**_TEXT, "vocab_size": size, "max_position_embeddings": 80, "pad_token_id": 1},
        audio_config={
            "spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "hidden_size": 16,
            "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2], "window_size": 4,
            "num_hidden_layers": 2, "projection_dim": 8,
        },
        projection_dim=8,
    )  # fmt: skip
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        max_length_s=1,
        fft_window_size=256,
        hop_length=80,
        frequency_max=4000,
        truncation="rand_trunc",
    ).save_pretrained(folder)


def _speaker(folder: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    config = WavLMConfig(
        **_TEXT, conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(80, 4), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, tdnn_dim=(8, 8), tdnn_kernel=(3, 1),
        tdnn_dilation=(1, 1), xvector_output_dim=8,
    )  # fmt: skip
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(folder)


def _whisper(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    size = _word_tokenizer(folder, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    config = WhisperConfig(
        vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=50,
        max_target_positions=16, decoder_start_token_id=2, bos_token_id=2, eos_token_id=3, pad_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.is_multilingual = False
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
