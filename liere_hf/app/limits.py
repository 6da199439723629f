"""What a visitor's file may hold, found out from its header: small files can announce, or unfold to, very much."""

import math
import zlib
from pathlib import Path
from typing import Any

from ..data.decoding.images import announced_size
from ..data.decoding.volumes import announced_shape
from ..errors import InputError

# Of an upload, in bytes.
MAX_FILE_SIZE = 100 * 2**20
MAX_PIXELS = 50_000_000
# Twenty minutes at 30 frames a second, or eight of 1920 x 1080 pixels; and what is decoded for one clip.
MAX_FRAMES, MAX_VIDEO_PIXELS, MAX_CLIP_PIXELS = 36_000, 30_000_000_000, 2**28
# 1 GiB in float32.
MAX_VOXELS = 2**28
MAX_DECOMPRESSED_BYTES = 2**30
_GZIP = b"\x1f\x8b"


def require_moderate(file: dict[str, Any], column: str, num_frames: int) -> None:
    """
    Args:
        file: `bytes`, or None and the `path`.
        column: `image`, `video` or `volume`.
        num_frames: of a clip that the model takes.

    Raises:
        InputError: the file has no header that can be read, or decoding it would take much memory or time.
    """
    if column == "image":
        _require_moderate_image(file)
    elif column == "video":
        _require_moderate_video(file, num_frames)
    else:
        _require_moderate_volume(file)


def _require_moderate_image(file: dict[str, Any]) -> None:
    width, height = announced_size(file)
    if width * height > MAX_PIXELS:
        raise InputError(f"the picture has {width:,} x {height:,} pixels, the page takes {MAX_PIXELS:,} in all")


def _require_moderate_video(file: dict[str, Any], num_frames: int) -> None:
    # PyAV is not needed for models of pictures.
    from ..data.decoding.videos import announced_extent

    frames, height, width = announced_extent(file)
    if (
        frames > MAX_FRAMES
        or frames * height * width > MAX_VIDEO_PIXELS
        or num_frames * height * width > MAX_CLIP_PIXELS
    ):
        raise InputError(
            f"the clip has {frames:,} frames of {width:,} x {height:,} pixels, the page takes {MAX_FRAMES:,} frames, "
            f"{MAX_CLIP_PIXELS // num_frames:,} pixels in each and {MAX_VIDEO_PIXELS:,} in all"
        )


def _require_moderate_volume(file: dict[str, Any]) -> None:
    shape = announced_shape(file)
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(
            f"the volume has {' x '.join(f'{extent:,}' for extent in shape)} voxels, the page takes {MAX_VOXELS:,} in "
            "all"
        )
    content = file["bytes"] if file["bytes"] is not None else Path(file["path"]).read_bytes()
    if content[:2] == _GZIP and _decompressed_size(content) > MAX_DECOMPRESSED_BYTES:
        raise InputError(
            f"the volume is larger than {MAX_DECOMPRESSED_BYTES / 2**30:g} GiB, the most that the page takes"
        )


def _decompressed_size(content: bytes) -> int:
    """Bytes in gzip data, counted up to just above `MAX_DECOMPRESSED_BYTES`."""
    size = 0
    while content and size <= MAX_DECOMPRESSED_BYTES:
        stream = zlib.decompressobj(wbits=31)
        try:
            while content and size <= MAX_DECOMPRESSED_BYTES:
                size += len(stream.decompress(content, 2**24))
                content = stream.unconsumed_tail
        except zlib.error:
            return size
        content = stream.unused_data
    return size
