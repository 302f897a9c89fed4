"""What a user's loop loads: the engine, and nothing that it does not need."""

import subprocess
import sys


def test_the_core_loads_the_engine_alone():
    """No phantom, no Hub client, nothing of [train], no other library; a missing one is an error that says the way out."""
    code = """
import sys
import kecae_aug, kecae_aug.integrations
libraries = {"albumentations": "albumentations", "timm": "timm", "lightning": "lightning"}
others = {"kecae_aug.phantom", "kecae_aug.phantom.jsw", "huggingface_hub", "kecae_training", "scipy", "sklearn"}
assert not (others | set(libraries)) & set(sys.modules), (others | set(libraries)) & set(sys.modules)
sys.modules["pytorch_lightning"] = None
for module, library in libraries.items():
    sys.modules[library] = None
    try:
        __import__(f"kecae_aug.integrations.{module}")
    except ImportError as error:
        assert f"pip install 'kecae-aug[{library}]'" in str(error), error
    else:
        raise AssertionError(module)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
