"""The example of docs/methods.md is a complete method."""

import re
import subprocess
import sys
from pathlib import Path

from codyra_llm.methods import METHODS
from tests.conftest import REPOSITORY


def test_a_file_in_the_folder_is_a_method(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "docs" / "methods.md").read_text(), re.DOTALL)
    assert code
    (tmp_path / "decay.py").write_text(code[1])
    program = f"""
import codyra_llm.methods.base, sys
import importlib.machinery, pkgutil
package = sys.modules["codyra_llm.methods"]
package.__path__.append({str(tmp_path)!r})
package.METHODS.clear()
package.METHODS.update(package._find())
from codyra_llm.config import load_config, config_fields
import torch
from codyra_llm.methods.hooks import Slice, Slices
config = load_config(None, {{"method": "decay", "decay.rate": 0.25}})
method = package.METHODS["decay"](config)
B, A = torch.ones(4), torch.ones(4)
method.after_step(Slices([Slice("m.B", B, B, 0), Slice("m.A", A, A, 0)], False))
assert B.tolist() == [0.75] * 4 and A.tolist() == [1.0] * 4
assert "decay.rate" in dict(config_fields())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_has_the_name_of_its_method() -> None:
    for name, method in METHODS.items():
        if method.__module__.startswith("codyra_llm."):  # tests add others
            assert method.__module__ == f"codyra_llm.methods.{name}"  # `--method` is checked against the file names


def test_every_method_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "docs" / "methods.md").read_text(), re.MULTILINE)
    ours = {name for name, method in METHODS.items() if method.__module__.startswith("codyra_llm.")}  # tests add others
    assert ours <= set(rows)
