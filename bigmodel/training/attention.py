"""Which of transformers' attention kernels training uses. All compute the same; on a CPU their speeds differ much."""

from __future__ import annotations

from typing import Any

DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")


def use(model: Any, device: str) -> None:
    """Choose the kernel: by a rule, not by a measurement, so that the same experiment takes the same one.

    torch's fused kernel cannot drop attention weights on a CPU: it falls back to plain products, computed in fp32 even
    for bf16 inputs. transformers' own plain products ("eager") stay in bf16, and their dropout can be `BulkDropout`.
    """
    if model._supports_sdpa:
        model.set_attn_implementation("eager" if device == "cpu" and drops(model.config) else "sdpa")


def drops(config: Any) -> bool:
    return any(getattr(config, name, 0.0) for name in DROPOUT)
