"""The machine and the package versions of all other results."""

import os
import platform
import subprocess
from collections.abc import Iterator

from codyra_llm.selfcheck.outcome import Row, Setting


def machine(setting: Setting) -> Iterator[Row]:
    """Yields the device with its memory in GB and driver, the number of cores, the system, and package versions."""
    from codyra_llm.results.provenance import versions

    found: dict[str, object] = {"device": "CPU", "cores": len(os.sched_getaffinity(0)), "system": platform.platform()}
    if setting.device == "cuda":
        found |= _gpu()
    for what, value in {**found, **versions(("triton", "peft"))}.items():
        yield {"what": what, "found": value}


def _gpu() -> dict[str, object]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "devices": torch.cuda.device_count(),
        "memory, GB": round(properties.total_memory / 1e9, 1),
        "compute capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "CUDA of torch": torch.version.cuda,
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):  # containers may lack it
        return "unknown"
