"""The data sets that recipes can use."""

from typing import NamedTuple


class DataSet(NamedTuple):
    """A data set.

    Attributes:
        title: its name in texts.
        hub_id: its usual id on the Hub, if any.
        needs_files: whether the user must give a directory of files.
        task: its task in the Hub's terms.
    """

    title: str
    hub_id: str | None = None
    needs_files: bool = False
    task: str = "image-classification"


DATASETS = {
    "arrows": DataSet("Arrows (spatial reasoning, generated)"),
    "cifar10": DataSet("CIFAR-10", "uoft-cs/cifar10"),
    "cifar100": DataSet("CIFAR-100", "uoft-cs/cifar100"),
    "clips": DataSet("Clips (which way the square moves, generated)", task="video-classification"),
    "digits": DataSet("scikit-learn digits"),
    "fashion_mnist": DataSet("Fashion-MNIST", "zalando-datasets/fashion_mnist"),
    "imagefolder": DataSet("Image folder", needs_files=True),
    "imagenet": DataSet("ImageNet-1k", "ILSVRC/imagenet-1k"),
    "ucf101": DataSet("UCF101", needs_files=True, task="video-classification"),
    "videofolder": DataSet("Video folder", needs_files=True, task="video-classification"),
    "volumes": DataSet("Volumes in folders", needs_files=True, task="video-classification"),
}
