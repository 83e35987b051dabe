"""Files beside the package, which `files.shipped` finds; all else of the packaging stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup

setup(
    data_files=[
        (f"share/codyra_llm/{folder}", [str(path) for path in sorted(Path(folder).iterdir()) if path.is_file()])
        for top in ("tasks", "configs", "ds_configs", "scripts/slurm")
        for folder in (Path(top), *sorted(Path(top).rglob("*")))
        if folder.is_dir() and folder.name != "__pycache__"
    ],
)
