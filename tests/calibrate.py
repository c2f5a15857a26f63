"""Ten seconds that say how fast this machine is now, so that a slow test run can be told from slow code."""

from __future__ import annotations

import os
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

REFERENCE = 12_000
"""Tokens per second of this model on two cores at the speed the 15-minute limit is meant for."""


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=8
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 8000, (16, 32))
    passes, started = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - started < 10:
            model(input_ids=ids)
            passes += 1
    speed = passes * ids.numel() / (time.perf_counter() - started)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"calibration: {speed:,.0f} tokens/s ({speed / REFERENCE:.2f} x reference), {torch.get_num_threads()} threads, "
        f"load {load:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
