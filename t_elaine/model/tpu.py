"""What kernels need to know of a TPU, told without importing Pallas, which takes half a second."""

LANES = 128
VMEM = 64 << 20  # bytes that a kernel may use of a chip's own memory, from v5 on
OLD = ("TPU v2", "TPU v3", "TPU v4")


def own_memory(device: str) -> int:
    """Bytes of its own memory that a kernel may use on this device, by JAX's name of its kind."""
    return 16 << 20 if device in OLD else VMEM


def flash_bytes(length: int, head_dim: int, block: int, width: int = 2) -> int:
    """Bytes of a chip's own memory that `flash_tpu`'s backward kernel holds at once.

    Sums and results of the whole row, what moves in and out twice over, one block's scores. Within 0.5 MiB of what
    libtpu 0.0.51 reports for kernels that do not fit (docs/attention.md).

    Args:
        length: T.
        head_dim: h, which fills whole lanes.
        block: queries and keys a block.
        width: bytes of a number of q's dtype.
    """
    h = -(-head_dim // LANES) * LANES
    whole = 3 * length * h * (4 + 2 * width) + 8 * 4 * length
    moved = 2 * 6 * block * h * width + 4 * block * LANES
    return whole + moved + 4 * block * block
