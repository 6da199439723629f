"""Every layout of folders for every medium: the same rule, and what is not understood is refused in one sentence."""

import os
from collections import Counter
from pathlib import Path

import pytest
from media_files import MEDIA, load_folder, write_files, write_picture

from liere_hf.data.summary import summary
from liere_hf.errors import InputError

every_medium = pytest.mark.parametrize("medium", MEDIA)
# Of the many layouts, those of images show the same within seconds.
images_first = pytest.mark.parametrize(
    "medium", [name if name == "imagefolder" else pytest.param(name, marks=pytest.mark.extensive) for name in MEDIA]
)


def classes(names: list[str], count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{name}/{number}" for name in names for number in range(count)]


def both(count: int, prefix: str = "") -> list[str]:
    return classes(["cat", "dog"], count, prefix)


def each(count: int) -> dict[str, int]:
    return {"cat": count, "dog": count}


HELD_OUT = {"train": each(8), "validation": each(2)}
THREE = {"train": each(3), "validation": each(2), "test": each(1)}
# Files by layout, and the numbers of examples by split and class that they must give.
LAYOUTS = {
    "class folders": (both(10), HELD_OUT),
    "nested folders belong to the class": (
        [f"{name}/{year}/deep/{number}" for name in ("cat", "dog") for year in (2020, 2021) for number in range(5)],
        HELD_OUT,
    ),
    "some nested": (both(5) + [f"{name}/more/{number}" for name in ("cat", "dog") for number in range(5)], HELD_OUT),
    "train only": (both(10, "train/"), HELD_OUT),
    "train and test": (both(10, "train/") + both(3, "test/"), HELD_OUT | {"test": each(3)}),
    "train and validation": (both(3, "train/") + both(2, "validation/"), {"train": each(3), "validation": each(2)}),
    **{
        f"{train} {validation} {test}": (both(3, f"{train}/") + both(2, f"{validation}/") + both(1, f"{test}/"), THREE)
        for train, validation, test in (
            ("train", "validation", "test"),
            ("train", "val", "test"),
            ("Train", "Valid", "Test"),
            ("TRAINING", "dev", "testing"),
            ("training", "VAL", "Testing"),
        )
    },
    "train is a class, a vehicle": (
        classes(["bus", "car", "train"], 5),
        {"train": dict.fromkeys(["bus", "car", "train"], 4), "validation": dict.fromkeys(["bus", "car", "train"], 1)},
    ),
    "names that look special": (
        classes(["__background__", "brackets[1]", "star*dir", "what?", "a b"], 5),
        {
            split: dict.fromkeys(["__background__", "a b", "brackets[1]", "star*dir", "what?"], count)
            for split, count in (("train", 4), ("validation", 1))
        },
    ),
    "a class that test lacks": (
        both(3, "train/") + both(1, "val/") + ["test/cat/0"],
        {"train": each(3), "validation": each(1), "test": {"cat": 1, "dog": 0}},
    ),
    "an empty class folder": ([*both(10), "empty/"], HELD_OUT),
    "an empty class folder of a split": (
        [*both(3, "train/"), *classes(["cat"], 2, "val/"), "val/dog/"],
        {"train": each(3), "validation": {"cat": 2, "dog": 0}},
    ),
}
REFUSED = {
    "no class folders": (["train/0", "train/1", "test/0"], r"train holds 2 {medium}s that are not in class folders"),
    "no class folders in test": (
        [*both(3, "train/"), "test/0"],
        r"test holds 1 {medium}s that are not in class folders",
    ),
    "only files": (["0", "1", "2"], r"holds 3 {medium}s that are not in class folders: put each in a folder named"),
    "an empty split": ([*both(3, "train/"), "val/"], r"val holds no {medium}s in class folders"),
    "empty folders": (["cat/", "dog/"], r"holds no {medium}s in class folders"),
    "a class only in validation": (
        both(3, "train/") + both(1, "val/") + ["val/emu/0"],
        r"has no training examples of emu, which validation has",
    ),
    "a class only in test": (
        [*both(3, "train/"), "test/emu/0", "test/fox/0"],
        r"has no training examples of emu, fox, which test has",
    ),
    "one class": (classes(["cat"], 5), r"has the one class 'cat', a classifier needs two or more"),
    "a folder around the splits": (
        both(3, "pets/train/"),
        r"has the one class .pets., .*: if its folders are the splits or the classes, .*/pets is the directory",
    ),
    "one class in each split": (["train/cat/0", "train/cat/1", "val/cat/0"], r"has the one class 'cat'"),
    "two train folders": (both(2, "Train/") + both(2, "train/"), r"has the folders Train and train, allowed is one"),
    "two validation folders": (
        both(2, "train/") + both(2, "val/") + both(2, "valid/"),
        r"has the folders val and valid, allowed is one for the split validation",
    ),
    "test without train": (both(2, "test/"), r"has test but no train: there is nothing to train on"),
    "test beside classes": ([*both(3), "test/0"], r"has test beside cat, dog but no train: put the classes"),
    "splits below classes": (
        ["cat/train/0", "cat/test/0", "dog/train/0", "dog/test/0"],
        r"cat holds the folders test and train: splits come before classes, as in test/cat",
    ),
    "a class of one example": (
        classes(["cat"], 1) + classes(["dog"], 9),
        r"class 'cat' has 1 example, at least 2 are needed to hold out eval_fraction 0.2",
    ),
    "fewer held out than classes": (
        both(2),
        r"eval_fraction 0.2 of 4 examples leaves fewer than one for each of the 2",
    ),
}


def found(splits) -> dict[str, list[str]]:
    return {name: [row[splits.column]["path"] for row in table] for name, table in splits.tables.items()}


@images_first
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(tmp_path, medium, layout):
    names, expected = LAYOUTS[layout]
    directory = write_files(tmp_path / "data", medium, names)
    splits = load_folder(directory, medium)
    assert splits.facts()["splits"] == expected
    for split, table in splits.tables.items():
        for row in table:
            path = Path(row[splits.column]["path"]).relative_to(directory)
            assert splits.label_names[row["label"]] in path.parts[:2], (split, path)
    paths = [path for each_split in found(splits).values() for path in each_split]
    assert Counter(paths) == Counter(str(path) for path in directory.rglob(f"*{MEDIA[medium][1]}"))


@images_first
@pytest.mark.parametrize("layout", REFUSED)
def test_refused_layout(tmp_path, medium, layout):
    names, message = REFUSED[layout]
    directory = write_files(tmp_path / "data", medium, names)
    with pytest.raises(InputError, match=message.format(medium=MEDIA[medium][2])) as error:
        load_folder(directory, medium)
    assert (
        str(tmp_path) in str(error.value) or "class 'cat'" in str(error.value) or "eval_fraction" in str(error.value)
    )


@every_medium
def test_a_class_is_the_folder_below_its_split(tmp_path, medium):
    """Also where splits are nested in folders named like other classes."""
    names = ["train/cat/dog/0", "train/dog/cat/0", "train/dog/0", "val/cat/0", "val/dog/dog/0"]
    splits = load_folder(write_files(tmp_path, medium, names), medium)
    labels = {Path(row[splits.column]["path"]).relative_to(tmp_path): row["label"] for row in splits.train}
    suffix = MEDIA[medium][1]
    assert labels == {
        Path(f"train/{name}/0{suffix}"): label for name, label in (("cat/dog", 0), ("dog/cat", 1), ("dog", 1))
    }


@every_medium
def test_everything_left_out_is_told(tmp_path, medium):
    _, suffix, word = MEDIA[medium]
    directory = write_files(
        tmp_path / "data",
        medium,
        [
            *both(3, "train/"),
            *both(2, "val/"),
            "stray",
            "train/stray",
            "train/empty/",
            "extra/cat/0",
            "train/.hidden/0",
        ],
    )
    others = {
        "train/cat/a.heic": f"no type of {word} that can be read",
        "train/cat/deep/b.mgz": f"no type of {word} that can be read",
        "val/notes.txt": f"no type of {word} that can be read",
        "README.md": "beside the split folders",
        "train/.DS_Store": "hidden",
        f"val/dog/._0{suffix}": "hidden",
    }
    for name in others:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("text")
    (directory / f"train/cat/gone{suffix}").symlink_to("nowhere")
    (directory / "train/cat/loop").symlink_to(directory / "train")
    (directory / "train/dog/self").symlink_to(directory / "train/dog")
    if hasattr(os, "mkfifo"):
        os.mkfifo(directory / f"train/cat/pipe{suffix}")
        others[f"train/cat/pipe{suffix}"] = "neither a file nor a folder"
    splits = load_folder(directory, medium)
    assert splits.facts()["splits"] == {"train": each(3), "validation": each(2)}
    expected = others | {
        f"stray{suffix}": "beside the split folders",
        f"train/stray{suffix}": "beside the class folders",
        "train/empty": f"a class folder without {word}s",
        "extra": "beside the split folders",
        "train/.hidden": "hidden",
        f"train/cat/gone{suffix}": "a broken link",
        "train/cat/loop": "a link to a folder above it",
        "train/dog/self": "a link to a folder above it",
    }
    assert {str(Path(file).relative_to(directory)): reason for file, reason in splits.left_out} == expected
    told = "\n".join(summary(splits.facts()))
    for name, reason in expected.items():
        assert f"left out, {reason}: " in told, reason
        if list(expected.values()).count(reason) == 1:
            assert f"left out, {reason}: 1 ({name})" in told


@every_medium
def test_names_that_are_not_utf8(tmp_path, medium):
    """As in archives of other systems: Latin-1 for an accent. Files are left out and told, folders refused."""
    directory = write_files(tmp_path / "data", medium, both(10))
    suffix = MEDIA[medium][1]
    content = (directory / f"cat/0{suffix}").read_bytes()
    (directory / "cat" / os.fsdecode(b"caf\xe9" + suffix.encode())).write_bytes(content)
    splits = load_folder(directory, medium)
    assert splits.facts()["splits"] == HELD_OUT
    assert summary(splits.facts())[-1] == f"left out, a name that is not UTF-8: 1 (cat/caf\\xe9{suffix})"
    (directory / os.fsdecode(b"\xe9t\xe9")).mkdir()
    with pytest.raises(InputError, match=r"data/\\xe9t\\xe9 has a name that is not UTF-8: rename it"):
        load_folder(directory, medium)


@every_medium
def test_links_are_followed(tmp_path, medium):
    pool = write_files(tmp_path / "pool", medium, both(10))
    directory = tmp_path / "data"
    for number, name in enumerate(("cat", "dog")):
        (directory / "train").mkdir(parents=True, exist_ok=True)
        (directory / "train" / name).symlink_to(pool / name)
        for split in ("val", "test"):
            (directory / split / name).mkdir(parents=True)
            suffix = MEDIA[medium][1]
            (directory / split / name / f"linked{suffix}").symlink_to(pool / name / f"{number}{suffix}")
    splits = load_folder(directory, medium)
    assert splits.facts()["splits"] == {"train": each(10), "validation": each(1), "test": each(1)}
    linked = tmp_path / "linked"
    linked.symlink_to(directory)
    assert load_folder(linked, medium).facts()["splits"] == splits.facts()["splits"]
    # Two folders that link to each other.
    (pool / "cat" / "dogs").symlink_to(pool / "dog")
    (pool / "dog" / "cats").symlink_to(pool / "cat")
    assert load_folder(linked, medium).facts()["splits"]["train"] == each(20)


@every_medium
def test_a_relative_directory(tmp_path, medium, monkeypatch):
    write_files(tmp_path / "some*[data]", medium, both(10))
    monkeypatch.chdir(tmp_path)
    assert load_folder(Path("some*[data]"), medium).facts()["splits"] == HELD_OUT


@every_medium
def test_the_held_out_part_depends_on_the_seed_only(tmp_path, medium):
    directory = write_files(tmp_path / "data", medium, both(10))
    first, again, other = (load_folder(directory, medium, seed) for seed in (0, 0, 1))
    assert found(first) == found(again)
    assert found(first)["validation"] != found(other)["validation"]


def test_the_summary_of_many_classes(tmp_path):
    names = [f"class {number:02}" for number in range(12)]
    directory = write_files(tmp_path, "imagefolder", classes(names, 10))
    assert summary(load_folder(directory, "imagefolder").facts()) == [
        f"data: {tmp_path}, 12 classes: class 00, class 01, class 02 and 9 more",
        "train: 96 examples (8 of each class)",
        "validation: 24 examples (2 of each class), held out from the training examples: 20%, seed 0",
    ]


def test_only_other_types_are_named(tmp_path):
    for name in ("cat/1.heic", "dog/2.jxl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"1")
    with pytest.raises(
        InputError, match=r"holds no images in class folders, only files of other types: \.heic, \.jxl"
    ):
        load_folder(tmp_path, "imagefolder")


def test_upper_case_suffixes(tmp_path):
    for name in both(10):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_picture((tmp_path / name).with_suffix(".PNG"))
    assert load_folder(tmp_path, "imagefolder").facts()["splits"] == HELD_OUT


def test_a_class_without_usable_files(tmp_path):
    directory = write_files(tmp_path, "imagefolder", both(5))
    for number in range(5):
        (directory / f"dog/{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match="5 of 10 images cannot be used"):
        load_folder(directory, "imagefolder")
    with pytest.raises(InputError, match="has no usable examples of dog: add some, or remove these"):
        load_folder(directory, "imagefolder", skip_corrupt_files=True)
