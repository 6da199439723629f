"""Four of the generated clips as an animated GIF: one of seven squares moves, and the class is its direction.

    python examples/animate_clips.py docs/images/clips.gif

The data set `clips` is in liere_hf/data/data_sets/moving_squares.py.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from liere_hf.data.data_sets.moving_squares import DIRECTIONS, EVALUATION_START, SIDE, clips

# Numbers of clips in which the moving square is easy to follow: up, right, down, down left.
CHOSEN = (184, 2, 332, 157)
SCALE, MARGIN, LABEL_HEIGHT = 4, 8, 18
MILLISECONDS, MILLISECONDS_AT_END = 250, 1000


def frame(pictures: list[np.ndarray], titles: list[str]) -> Image.Image:
    """One frame of each clip, (rows, columns) each, side by side under their titles."""
    side = SIDE * SCALE
    image = Image.new("L", (len(pictures) * (side + MARGIN) - MARGIN, side + LABEL_HEIGHT), 255)
    pen = ImageDraw.Draw(image)
    for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = place * (side + MARGIN)
        pen.text((left + side / 2, LABEL_HEIGHT / 2), title, fill=0, anchor="mm", font_size=14)
        image.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (left, LABEL_HEIGHT))
    return image


def main(path: Path) -> None:
    chosen = [clips(EVALUATION_START + number, 1)[0] for number in CHOSEN]
    titles = [[*DIRECTIONS][(EVALUATION_START + number) % len(DIRECTIONS)] for number in CHOSEN]
    # Sixteen grays are enough, and make a small file.
    frames = [frame(list(pictures), titles).quantize(16) for pictures in zip(*chosen, strict=True)]
    durations = [MILLISECONDS] * (len(frames) - 1) + [MILLISECONDS_AT_END]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
