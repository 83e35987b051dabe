"""Settings of glibc's heap, which keeps freed blocks for reuse and so wastes memory where large ones come and go."""

import ctypes
import gc

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BLOCK = 256 * 1024  # bytes


def return_large_blocks() -> None:
    """Makes glibc return large freed blocks to the system at once, from now on.

    By default it keeps blocks of up to 32 MB for reuse. Weights that are whole for a moment, between partitions that
    stay, then leave holes of all sizes, which cost more memory than partitioning or quantizing the weights saves.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def return_freed_memory() -> None:
    """Collects garbage and returns all freed pages to the system; takes a few milliseconds."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
