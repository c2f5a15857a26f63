from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny.tiny_llama()
