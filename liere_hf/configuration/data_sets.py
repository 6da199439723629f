"""The data sets that recipes can use."""

from typing import NamedTuple


class DataSet(NamedTuple):
    """A data set.

    Attributes:
        title: its name in texts.
        module: of `liere_hf.data.data_sets`, with the function `load_<name of the data set>`.
        hub_id: its usual id on the Hub, if any.
        needs_files: whether the user must give a directory of files.
        media: of its examples, of which a model takes one: `image`, `video` or `volume`.
    """

    title: str
    module: str
    hub_id: str | None = None
    needs_files: bool = False
    media: tuple[str, ...] = ("image",)

    @property
    def is_built_in(self) -> bool:
        """Whether it is generated or comes with a package: there is nothing to read or to download."""
        return self.hub_id is None and not self.needs_files

    @property
    def task(self) -> str:
        """In the Hub's terms."""
        return "image-classification" if self.media == ("image",) else "video-classification"


DATASETS = {
    "arrows": DataSet("Arrows (spatial reasoning, generated)", "arrows"),
    "cifar10": DataSet("CIFAR-10", "cifar", "uoft-cs/cifar10"),
    "cifar100": DataSet("CIFAR-100", "cifar", "uoft-cs/cifar100"),
    "clips": DataSet("Clips (which way the square moves, generated)", "moving_squares", media=("volume", "video")),
    "digits": DataSet("scikit-learn digits", "digits"),
    "fashion_mnist": DataSet("Fashion-MNIST", "fashion_mnist", "zalando-datasets/fashion_mnist"),
    "imagefolder": DataSet("Image folder", "own_data", needs_files=True),
    "imagenet": DataSet("ImageNet-1k", "imagenet", "ILSVRC/imagenet-1k"),
    "ucf101": DataSet("UCF101", "ucf101", needs_files=True, media=("video",)),
    "videofolder": DataSet("Video folder", "own_data", needs_files=True, media=("video",)),
    "volumes": DataSet("Volumes in folders", "own_data", needs_files=True, media=("volume",)),
}
