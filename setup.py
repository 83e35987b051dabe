"""Packaging. Ranges are stated here; the versions that were tested stand in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="codyra_llm",
    version="0.1.0",
    description="Continual fine-tuning of LLaMA and Gemma with importance-gated low-rank updates (CoDyRA)",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["codyra_llm", "codyra_llm.*"]),
    # what is needed beside the package: found by `files.shipped`
    data_files=[
        (f"share/codyra_llm/{folder}", [str(path) for path in sorted(Path(folder).iterdir()) if path.is_file()])
        for top in ("tasks", "configs", "ds_configs")
        for folder in (Path(top), *sorted(Path(top).rglob("*")))
        if folder.is_dir() and folder.name != "__pycache__"
    ],
    entry_points={"console_scripts": ["codyra = codyra_llm.cli.__main__:run"]},
    package_data={"codyra_llm.models": ["architectures.json"], "codyra_llm.results": ["results.schema.json"]},
    install_requires=[
        "torch>=2.6",
        "transformers>=5.23,<6",
        "deepspeed>=0.18",
        "datasets>=4.0",
        "pyarrow>=21",
        "bitsandbytes>=0.46",
        "sentencepiece>=0.2",
        "rouge-score>=0.1.2",
        "sacrebleu>=2.4",
        "rapidfuzz>=3.0",
        "lm-eval>=0.4.13",
        "safetensors>=0.5",
        "gguf>=0.10",
        "numpy>=1.26",
        "psutil>=5.9",
        "pydantic>=2.7",
        "pyyaml>=6.0",
        "regex>=2023.0",
        "requests>=2.31",
        "tensorboard>=2.15",
        "tqdm>=4.60",
        "matplotlib>=3.8",
    ],
    extras_require={
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "peft>=0.17",
            "ruff",
            "mypy",
            "types-PyYAML",
            "types-tqdm",
            'triton>=3.2; platform_system == "Linux"',  # CUDA builds of torch bring it; its interpreter needs no GPU
        ]
    },
)
