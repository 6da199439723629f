import shutil
import sys
from pathlib import Path

import av
import datasets
import numpy as np
import pytest

from liere_hf import LiereViTConfig
from liere_hf.configuration import DataArguments
from liere_hf.data import load_splits
from liere_hf.data.batching import EvaluationExamples
from liere_hf.data.resizing.clips import EvaluationClips
from liere_hf.errors import InputError

# In the order of their numbers, which is not alphabetical.
CLASSES = ("Archery", "YoYo", "Biking")
NUM_FRAMES = 12


def write_clip(path: Path, num_frames: int = NUM_FRAMES, grey: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for _ in range(num_frames):
            image = np.full((32, 48, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.avi")


def clip_name(label: str, group: int) -> str:
    return f"v_{label}_g{group:02}_c01.avi"


def write_lists(folder: Path) -> None:
    """Write the official lists for groups 1 to 6. Groups 1 and 2 (3 and 4, 5 and 6) are the test examples."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {label: number for number, label in enumerate(CLASSES, 1)}
    (folder / "classInd.txt").write_text("".join(f"{numbers[label]} {label}\r\n" for label in sorted(CLASSES)))
    for split in (1, 2, 3):
        groups = {"test": (2 * split - 1, 2 * split)}
        groups["train"] = sorted(set(range(1, 7)) - set(groups["test"]))
        for name in ("train", "test"):
            files = [(label, f"{label}/{clip_name(label, group)}") for label in CLASSES for group in groups[name]]
            lines = [f"{file} {numbers[label]}" if name == "train" else file for label, file in files]
            (folder / f"{name}list{split:02}.txt").write_text("\n".join(lines) + "\n")


LAYOUTS = {
    "authors": ("ucfTrainTestlist", "UCF-101/{label}"),
    "class folders": ("ucfTrainTestlist", "{label}"),
    "flat": ("ucfTrainTestlist", "videos"),
    "lists beside flat": (".", "."),
    "lists elsewhere": ("splits", "UCF-101/{label}"),
}


@pytest.fixture
def official(tmp_path, clip):
    """Writes all videos and lists in one of the layouts, and returns the directory."""

    def write(layout: str = "authors") -> Path:
        lists, videos = LAYOUTS[layout]
        directory = tmp_path / "ucf"
        write_lists(directory / lists)
        for label in CLASSES:
            folder = directory / videos.format(label=label)
            folder.mkdir(parents=True, exist_ok=True)
            for group in range(1, 7):
                shutil.copy(clip, folder / clip_name(label, group))
        return directory

    return write


def load(seed: int = 0, **options):
    options = {"frame_stride": 1, "data_num_proc": 1} | options
    return load_splits(DataArguments(dataset="ucf101", **options), seed)


def contents(dataset) -> dict[str, str]:
    """Labels by file."""
    names = dataset.features["label"].names
    return {Path(row["video"]["path"]).name: names[row["label"]] for row in dataset}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_official_splits(official, layout):
    directory = official(layout)
    for split in (1, 2, 3) if layout == "authors" else (2,):
        data = load(data_dir=str(directory), ucf101_split=split)
        assert (data.column, tuple(data.label_names), data.left_out) == ("video", CLASSES, [])
        assert data.num_train == len(data.train) == 12
        test_groups = (2 * split - 1, 2 * split)
        assert contents(data.test) == {clip_name(label, group): label for label in CLASSES for group in test_groups}
        train_groups = set(range(1, 7)) - set(test_groups)
        assert contents(data.train) == {clip_name(label, group): label for label in CLASSES for group in train_groups}
        assert all(Path(row["video"]["path"]).is_file() for row in data.train)


def test_videos_behind_links(official, tmp_path):
    directory = official()
    (directory / "UCF-101").rename(tmp_path / "elsewhere")
    (directory / "UCF-101").symlink_to(tmp_path / "elsewhere")
    assert len(load(data_dir=str(directory)).train) == 12


def test_missing_files_are_counted(official):
    directory = official()
    for group in (1, 3, 4, 5):
        (directory / "UCF-101" / "YoYo" / clip_name("YoYo", group)).unlink()
    with pytest.raises(
        InputError,
        match=r"lacks 4 of the files that split 1 .*: YoYo/v_YoYo_g03_c01.avi, .*g04.*, .*g05.* and 1 more$",
    ):
        load(data_dir=str(directory))


def test_wrong_lists(official):
    directory = official()
    lists = directory / "ucfTrainTestlist"
    (lists / "testlist02.txt").unlink()
    with pytest.raises(InputError, match=r"ucfTrainTestlist lacks testlist02\.txt"):
        load(data_dir=str(directory), ucf101_split=2)
    (lists / "testlist03.txt").write_text("Swing/v_Swing_g01_c01.avi\n")
    with pytest.raises(InputError, match=r"testlist03\.txt lists Swing/v_Swing_g01_c01\.avi, which is in none"):
        load(data_dir=str(directory), ucf101_split=3)
    (lists / "trainlist01.txt").write_text("\n")
    with pytest.raises(InputError, match=r"trainlist01\.txt lists no files"):
        load(data_dir=str(directory))
    with pytest.raises(InputError, match="ucf101_split is 4, allowed is 1 to 3"):
        load(data_dir=str(directory), ucf101_split=4)


@pytest.mark.parametrize("text", ["", "1 Archery\n3 YoYo\n", "Archery\n", "1 Archery\n1 YoYo\n", "one Archery\n"])
def test_wrong_class_list(official, text):
    directory = official()
    (directory / "ucfTrainTestlist" / "classInd.txt").write_text(text)
    with pytest.raises(InputError, match=r"classInd\.txt must have a line 'number name'"):
        load(data_dir=str(directory))


def write_class_folders(directory: Path, count: int) -> Path:
    suffixes = (".avi", ".mp4", ".MKV", ".webm", ".mov")
    for label in ("run", "jump"):
        for number in range(count):
            write_clip(directory / label / f"{label}{number}{suffixes[number % 5]}", grey=60 + 10 * number)
    return directory


def test_class_folder_split_is_stratified(tmp_path):
    directory = write_class_folders(tmp_path / "videos", 10)
    (directory / "run" / "notes.txt").write_text("no video")
    data = load(data_dir=str(directory), eval_fraction=0.3)
    assert data.label_names == ["jump", "run"]
    train, test = contents(data.train), contents(data.validation)
    assert (len(train), len(test)) == (14, 6)
    assert sorted(test.values()) == ["jump"] * 3 + ["run"] * 3
    assert not train.keys() & test.keys()
    assert all(name.startswith(label) for name, label in (train | test).items())
    assert contents(load(data_dir=str(directory), eval_fraction=0.3).validation) == test
    assert contents(load(1, data_dir=str(directory), eval_fraction=0.3).validation) != test


@pytest.mark.parametrize("hold_out", [False, True])
def test_corrupt_and_short_videos_are_named_or_skipped(official, tmp_path, hold_out):
    directory = official()
    folder = directory / "UCF-101"
    empty, text, short = (folder / "Biking" / clip_name("Biking", group) for group in (1, 2, 3))
    empty.write_bytes(b"")
    text.write_text("no video")
    write_clip(short, 7)
    options = {"data_dir": str(folder if hold_out else directory)}
    with pytest.raises(InputError, match=r"^3 of 18 videos cannot be used: .*skip_corrupt_files"):
        load(**options)
    data = load(**options, skip_corrupt_files=True)
    unreadable = "cannot be used: Invalid data found when processing input"
    few = "cannot be used: it has 7 frames; a clip of 8 with frame_stride 1 takes 8: at least 8 are needed"
    assert sorted(data.left_out) == [(str(empty), unreadable), (str(text), unreadable), (str(short), few)]
    assert len(data.train) + len(data.evaluation) == 15
    # With fewer frames in a clip the short one is long enough.
    data = load(**options, skip_corrupt_files=True, input_size=[4, 32, 32], frame_stride=2)
    assert sorted(data.left_out) == [(str(empty), unreadable), (str(text), unreadable)]


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"input_size": [12, 32, 32]}, None),
        ({"frame_stride": 2, "input_size": [6, 32, 32]}, None),
        ({"input_size": [13]}, "it has 12 frames; a clip of 13 with frame_stride 1 takes 13: at least 13 are needed"),
        ({"frame_stride": 2}, "it has 12 frames; a clip of 8 with frame_stride 2 takes 15: set frame_stride to 1"),
        (
            {"frame_stride": 9, "input_size": [4]},
            "it has 12 frames; a clip of 4 with frame_stride 9 takes 28: set frame_stride to 3 or less",
        ),
        ({"image_size": (13, 32, 32)}, "it has 12 frames; a clip of 13 with frame_stride 1"),
    ],
)
def test_frames_that_a_clip_needs(tmp_path, options, fault):
    """Of the size in the recipe, else of the model's; the message says which stride would do."""
    write_class_folders(tmp_path, 5)
    config = LiereViTConfig(image_size=options.pop("image_size", (8, 32, 32)), patch_size=1)
    arguments = DataArguments(
        dataset="videofolder", data_dir=str(tmp_path), data_num_proc=1, **{"frame_stride": 1} | options
    )
    if fault is None:
        assert len(load_splits(arguments, 0, config).train) == 8
    else:
        with pytest.raises(InputError, match=rf"\.avi \({fault}.*\)"):
            load_splits(arguments, 0, config)


@pytest.mark.parametrize("test_split", ["test", "validation", None])
def test_hub_copy(tmp_path, monkeypatch, test_split):
    """A folder of parquet files replaces a Hub dataset: `load_dataset` reads both in the same way."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"video": datasets.Video(), "label": datasets.ClassLabel(names=["jump", "run"]), "id": datasets.Value("int64")}
    )
    for split, count in (("train", 10), (test_split, 4)):
        if split is None:
            continue
        clips = [write_clip(tmp_path / "clips" / f"{split}{number}.mp4").read_bytes() for number in range(count)]
        table = datasets.Dataset.from_dict(
            {
                "video": [{"bytes": content, "path": f"{number}.mp4"} for number, content in enumerate(clips)],
                "label": [number % 2 for number in range(count)],
                "id": list(range(count)),
            },
            features=features,
        )
        (tmp_path / "hub").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    data = load(hub_id=str(tmp_path / "hub"))
    assert data.evaluation.column_names == data.train.column_names == ["video", "label"]
    assert data.label_names == ["jump", "run"]
    assert (len(data.train), len(data.evaluation)) == ((10, 4) if test_split else (8, 2))
    examples = EvaluationExamples(
        data.evaluation, "video", EvaluationClips((8, 32, 32), 1, 1, 1, (0.5,) * 3, (0.5,) * 3)
    )
    assert examples[1]["pixel_values"].shape == (8, 3, 32, 32)
    assert "torchcodec" not in sys.modules


@pytest.mark.parametrize(
    "features, message",
    [
        (
            {"clip": datasets.Value("string"), "label": datasets.ClassLabel(2)},
            "has no column 'video', only clip, label",
        ),
        (
            {"video": datasets.Value("string"), "label": datasets.Value("int64")},
            "has labels of type .*int64.*ClassLabel",
        ),
    ],
)
def test_other_columns_on_the_hub(tmp_path, monkeypatch, features, message):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    first = next(iter(features))
    table = datasets.Dataset.from_dict({first: ["a"], "label": [0]}, features=datasets.Features(features))
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=message):
        load(hub_id=str(tmp_path / "hub"))


def test_no_source():
    with pytest.raises(InputError, match="data_dir and hub_id are both missing"):
        load()
    with pytest.raises(InputError, match="data_dir nowhere is not a directory"):
        load(data_dir="nowhere")


def test_directory_without_videos(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("no video")
    with pytest.raises(InputError, match="holds no videos in class folders"):
        load(data_dir=str(tmp_path))
