import torch


def missing(device: torch.device) -> str | None:
    return "no"
