"""Tiny configurations of architectures of transformers (Hugging Face), with random weights."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch

from architectures import tasks
from architectures.registry import add
from architectures.tasks import CLASSES, Case

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS, LENGTH = 64, 16
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TRANSLATOR = {
    "vocab_size": WORDS,
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
IMAGE = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 4}
IMAGE |= {"num_attention_heads": 4, "intermediate_size": 96}
SOUND = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SOUND |= {"intermediate_size": 96, "conv_dim": (24, 24, 24), "conv_kernel": (10, 3, 3)}
SOUND |= {"conv_stride": (5, 2, 2), "num_conv_pos_embeddings": 16, "vocab_size": 8}
SOUND |= {"num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "classifier_proj_size": 24}

# Stem of the classes' names, end of the model's, and what differs from the sizes above.
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Albert", "ForSequenceClassification", {"embedding_size": 24}),
    ("Electra", "ForSequenceClassification", {"embedding_size": 24}),
    ("RoFormer", "ForSequenceClassification", {"embedding_size": 48}),
    ("ConvBert", "ForSequenceClassification", {"embedding_size": 48}),
    ("SqueezeBert", "ForSequenceClassification", {"embedding_size": 48}),
    (
        "Nystromformer",
        "ForSequenceClassification",
        {"segment_means_seq_len": 16, "num_landmarks": 4},
    ),
    ("Roberta", "ForMaskedLM", {}),
    ("MobileBert", "ForMaskedLM", {"embedding_size": 24, "intra_bottleneck_size": 24}),
    ("OPT", "ForCausalLM", {"ffn_dim": 96, "word_embed_proj_dim": 48}),
    ("CodeGen", "ForCausalLM", {"n_embd": 48, "n_layer": 4, "n_head": 4, "rotary_dim": 8}),
    ("GPTNeo", "ForCausalLM", {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}),
    ("Falcon", "ForCausalLM", {"new_decoder_architecture": False}),
    ("Phi", "ForCausalLM", {}),
    ("Mistral", "ForCausalLM", {"num_key_value_heads": 2}),
    ("Qwen3", "ForCausalLM", {"num_key_value_heads": 2, "head_dim": 12}),
    ("Granite", "ForCausalLM", {"num_key_value_heads": 2}),
    ("Persimmon", "ForCausalLM", {}),
    ("MBart", "ForConditionalGeneration", {}),
    ("Blenderbot", "ForConditionalGeneration", {}),
    ("Marian", "MTModel", {}),
    ("M2M100", "ForConditionalGeneration", {}),
    ("UMT5", "ForConditionalGeneration", {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_heads": 4}),
    ("ViTMSN", "ForImageClassification", {}),
    ("Dinov2", "ForImageClassification", {}),
    ("ConvNextV2", "ForImageClassification", {"hidden_sizes": [16, 32, 48, 64]}),
    ("PvtV2", "ForImageClassification", {"hidden_sizes": [16, 32, 40, 64]}),
    ("Hubert", "ForSequenceClassification", {}),
    ("UniSpeechSat", "ForSequenceClassification", {"num_clusters": 8}),
    ("PatchTST", "ForPrediction", {}),
)
OWN_SIZES: dict[str, dict[str, Any]] = {
    "CodeGen": {"vocab_size": WORDS, "n_positions": 64, "n_ctx": 64},
    "GPTNeo": {"vocab_size": WORDS, "hidden_size": 48, "num_heads": 4, "window_size": 8},
    "UMT5": {"vocab_size": WORDS, "num_layers": 3, "decoder_start_token_id": 0},
    "ConvNextV2": {"depths": [1, 1, 2, 1], "num_channels": 3},
    "PvtV2": {"image_size": 32, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 5, 8]},
    "PatchTST": {"num_input_channels": 2, "context_length": 32, "prediction_length": 8}
    | {"patch_length": 4, "patch_stride": 4, "d_model": 32, "num_attention_heads": 4}
    | {"num_hidden_layers": 3, "ffn_dim": 64},
}


def sizes_of(stem: str, end: str) -> dict[str, Any]:
    """Return the sizes of a tiny configuration."""
    if stem in OWN_SIZES:
        return OWN_SIZES[stem]
    if end in ("ForConditionalGeneration", "MTModel"):
        return TRANSLATOR
    if end == "ForImageClassification":
        return IMAGE
    return SOUND if stem in ("Hubert", "UniSpeechSat") else SIZES


def task_of(stem: str, end: str) -> tuple[Any, Any, Any]:
    """Return the inputs, the target and the loss that go with the end of a model's name."""
    if end == "ForImageClassification":
        x, y = tasks.pictures(64, 32)
        return {"pixel_values": x}, y, tasks.labels
    if end == "ForPrediction":
        x = tasks.waves(64, 40, 2)
        return {"past_values": x[:, :32], "future_values": x[:, 32:]}, x[:, 32:], tasks.own
    if stem in ("Hubert", "UniSpeechSat"):
        x, y = tasks.sounds(32, 1200)
        return {"input_values": x}, y, tasks.labels
    if end == "ForSequenceClassification":
        x, y = tasks.words(64, LENGTH, WORDS)
        return {"input_ids": x, "attention_mask": torch.ones_like(x)}, y, tasks.labels
    x = tasks.sentences(64, LENGTH, WORDS)
    if end != "ForMaskedLM":
        return {"input_ids": x, "labels": x}, x, tasks.own
    hidden = torch.rand(x.shape, generator=tasks.random(5)) < 0.2
    asked = x.masked_fill(~hidden, -100)
    return {"input_ids": x.masked_fill(hidden, 3), "labels": asked}, asked, tasks.own


def make(stem: str, end: str, more: dict[str, Any]) -> Case:
    """Make a tiny model of an architecture."""
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{stem}Config")(**(sizes_of(stem, end) | more))
    if end.endswith("Classification"):
        config.num_labels = CLASSES
    model = getattr(transformers, stem + end)(config)
    x, target, loss = task_of(stem, end)
    return Case(model, loss, x, target, batch=8 if "input_values" in x else 16)


def listed(stem: str, end: str, more: dict[str, Any]) -> None:
    """Put an architecture into the list."""
    add(f"transformers/{stem}{end}")(lambda: make(stem, end, more))


for row in ROWS:
    listed(*row)
