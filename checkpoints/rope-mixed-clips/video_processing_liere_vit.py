"""Video processor of LiereViT: VideoMAE's, but files are decoded by PyAV, which includes its own FFmpeg."""

from typing import Any

from transformers.models.videomae.video_processing_videomae import VideoMAEVideoProcessor
from transformers.video_utils import load_video


class LiereViTVideoProcessor(VideoMAEVideoProcessor):
    """Resizes, crops and normalizes clips to `pixel_values` of shape (batch, frames, channels, height, width)."""

    _auto_class = "AutoVideoProcessor"

    def fetch_videos(self, video_url_or_urls, sample_indices_fn=None):
        """Decode a path or URL, or a list of them, into frames, turned upright, and their metadata."""
        if isinstance(video_url_or_urls, list):
            decoded = [self.fetch_videos(video, sample_indices_fn=sample_indices_fn) for video in video_url_or_urls]
            return list(zip(*decoded, strict=True))
        frames, metadata = load_video(video_url_or_urls, backend="pyav", sample_indices_fn=sample_indices_fn)
        if metadata is not None:
            frames = turned_upright(frames, _first_frame(video_url_or_urls)).copy()
            metadata.height, metadata.width = frames.shape[1:3]
        return frames, metadata


def turned_upright(pixels: Any, frame: Any) -> Any:
    """An array (..., height, width, 3) as a decoded frame of its video is to be shown, to the nearest quarter turn.

    Phones store how they were held as FFmpeg's display matrix m, which takes the point (x, y), y downwards, to
    (m[0] x + m[3] y, m[1] x + m[4] y).

    Args:
        frame: PyAV's.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    x_from_x, y_from_x, _, x_from_y, y_from_y = memoryview(bytes(matrix)).cast("i")[:5].tolist()
    if abs(y_from_x) + abs(x_from_y) > abs(x_from_x) + abs(y_from_y):
        pixels = pixels.swapaxes(-3, -2)
        x_from_x, y_from_y = x_from_y, y_from_x
    return pixels[..., :: -1 if y_from_y < 0 else 1, :: -1 if x_from_x < 0 else 1, :]


def _first_frame(video: str) -> Any:
    # In a `try`, as transformers looks for the imports of published code: PyAV is needed only here.
    try:
        import av
    except ImportError:
        raise
    with av.open(video) as container:
        return next(container.decode(video=0))


__all__ = ["LiereViTVideoProcessor"]
