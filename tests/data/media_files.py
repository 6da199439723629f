"""Small pictures, videos and volumes for tests of folders."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

from liere_hf.configuration import DataArguments
from liere_hf.data import Splits, load_splits

NUM_FRAMES = 8


def write_picture(path: Path) -> None:
    Image.new("RGB", (4, 4), (10, 20, 30)).save(path)


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_volume(path: Path) -> None:
    np.save(path, np.zeros((2, 3, 4), np.uint8))


# By data set: how a file is written, its suffix, and the word for it in messages.
MEDIA = {
    "imagefolder": (write_picture, ".png", "image"),
    "videofolder": (write_video, ".mp4", "video"),
    "volumes": (write_volume, ".npy", "volume"),
}


def write_files(directory: Path, medium: str, names: list[str]) -> Path:
    """Write files of a medium, whose suffix is appended to the names; names that end in / are empty folders."""
    write, suffix, _ = MEDIA[medium]
    content = None
    for name in names:
        path = directory / (name if name.endswith("/") else name + suffix)
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            write(path)
            content = path.read_bytes()
        path.write_bytes(content)
    return directory


def load_folder(directory: Path, medium: str, seed: int = 0, **options) -> Splits:
    options = {"frame_stride": 1, "data_num_proc": 1} | options
    return load_splits(DataArguments(dataset=medium, data_dir=str(directory), **options), seed)
