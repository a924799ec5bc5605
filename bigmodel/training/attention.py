"""Which of transformers' attention kernels training uses. All compute the same; on a CPU their speeds differ much."""

from __future__ import annotations

from typing import Any

DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")


def use(model: Any, device: str, precision: str) -> None:
    """Choose the kernel for a device and precision: by a rule, so that the same experiment takes the same one anywhere.

    torch's fused kernel cannot drop attention weights on a CPU: it falls back to plain products, which it computes in
    fp32 for bf16 inputs. transformers' own plain products ("eager") stay in bf16, where the processor is fast.
    """
    if model._supports_sdpa:
        eager = device == "cpu" and precision == "bf16" and drops(model.config)
        model.set_attn_implementation("eager" if eager else "sdpa")


def drops(config: Any) -> bool:
    return any(getattr(config, name, 0.0) for name in DROPOUT)
