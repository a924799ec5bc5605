"""What a decoder remembers of long rows side by side: as if each were read alone, anew, by the model's own masks."""

from typing import Any

import pytest
import torch
import transformers

from bigmodel.tasks.memory import KeysAndValues, Nothing, memory_of

LONGEST = 64
SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3,
}  # fmt: skip
GATED = SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": LONGEST}
WINDOWED = {"use_sliding_window": True, "sliding_window": 8}
CHUNKS = GATED | {
    "intermediate_size_mlp": 64, "head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 8, "pad_token_id": 0,
    "num_hidden_layers": 4, "attn_temperature_tuning": False,
}  # fmt: skip
LOCAL = {
    "vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "window_size": 8, "initializer_range": 0.3,
    "attention_types": [[["global", "local"], 1]], "max_position_embeddings": LONGEST,
}  # fmt: skip
ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "short_factor": [1.0] * 4}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], type]] = {
    "llama": ("Llama", GATED, KeysAndValues),
    "a window in all layers": ("Mistral", GATED | {"sliding_window": 8}, KeysAndValues),
    "a window in some": (
        "Gemma3",
        GATED | {"sliding_window": 8, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
        KeysAndValues,
    ),
    "a window that is turned off": ("Qwen2", GATED | {"use_sliding_window": False, "sliding_window": 8}, KeysAndValues),
    "a window from a layer on": (
        "Qwen2",
        GATED | WINDOWED | {"max_window_layers": 1},
        KeysAndValues,
    ),
    "a window in all layers, each named": ("Qwen2", GATED | WINDOWED | {"max_window_layers": 0}, KeysAndValues),
    "a window that the architecture has not": ("Llama", GATED | {"sliding_window": 8}, KeysAndValues),
    "a window and sinks": (
        "GptOss",
        GATED | {"sliding_window": 8, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        KeysAndValues,
    ),
    "chunks": ("Llama4", CHUNKS, KeysAndValues),
    "chunks, and products that grow with the length": (
        "Llama4",
        CHUNKS | {"attn_temperature_tuning": True, "floor_scale": 8},
        Nothing,
    ),
    "a local window as long as the texts": ("GPTNeo", LOCAL | {"window_size": LONGEST}, KeysAndValues),
    "a window from the longest row's end": ("GPTNeo", LOCAL, Nothing),
    "positions that change with the length": (
        "Phi3",
        GATED
        | {"original_max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        | {"rope_parameters": ROPE | {"original_max_position_embeddings": 16, "long_factor": [8.0] * 4}},
        Nothing,
    ),
    "distances added to the products": (
        "Bloom",
        {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        Nothing,
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_of_any_length_have_the_logits_of_each_alone(name: str) -> None:
    family, fields, kind = ARCHITECTURES[name]
    config_name = f"{family}TextConfig" if family in ("Gemma3", "Llama4") else f"{family}Config"
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, config_name)(**fields)).eval()
    rows = [[3 + (7 * i + n) % 90 for i in range(length)] for n, length in enumerate((6, 30, 30, 17))]
    with torch.inference_mode():
        memory, alone = memory_of(model, LONGEST), Nothing()
        assert type(memory) is kind
        for together in (rows, rows[1:3]):  # of several lengths, and of one
            for place, ids in enumerate(together):
                first = memory.read(model, place, ids[:-1])
                assert abs(first - alone.read(model, 0, ids[:-1])).max() < 1e-3
            found = memory.write(model, [ids[-1] for ids in together], [len(ids) - 1 for ids in together])
            for logits, ids in zip(found, together, strict=True):
                assert abs(logits - alone.read(model, 0, ids)).max() < 1e-3
