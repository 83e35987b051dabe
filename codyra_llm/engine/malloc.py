"""The C library's heap: glibc keeps freed blocks for later, which costs memory where large ones come and go."""

import ctypes
import gc

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BLOCK = 256 * 1024  # bytes


def return_large_blocks() -> None:
    """From now on, makes glibc give large freed blocks back at once.

    It would keep those of up to 32 MB for later, and weights that are whole for a moment, between slices that stay,
    leave holes of all sizes: more than cutting them up, or quantizing them, saves.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def return_freed_memory() -> None:
    """Collects what nothing refers to any more, and gives all freed pages back: a few milliseconds."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
