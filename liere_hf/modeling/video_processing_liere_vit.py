"""Video processor of LiereViT: VideoMAE's, but files are decoded by PyAV, which includes its own FFmpeg."""

from transformers.models.videomae.video_processing_videomae import VideoMAEVideoProcessor
from transformers.video_utils import load_video


class LiereViTVideoProcessor(VideoMAEVideoProcessor):
    """Resizes, crops and normalizes clips to `pixel_values` of shape (batch, frames, channels, height, width)."""

    _auto_class = "AutoVideoProcessor"

    def fetch_videos(self, video_url_or_urls, sample_indices_fn=None):
        """Decode a path or URL, or a list of them, into frames and their metadata."""
        if isinstance(video_url_or_urls, list):
            decoded = [self.fetch_videos(video, sample_indices_fn=sample_indices_fn) for video in video_url_or_urls]
            return list(zip(*decoded, strict=True))
        return load_video(video_url_or_urls, backend="pyav", sample_indices_fn=sample_indices_fn)


__all__ = ["LiereViTVideoProcessor"]
