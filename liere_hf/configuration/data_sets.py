"""The data sets that a recipe may name: what they are called and where they are."""

from typing import NamedTuple


class DataSet(NamedTuple):
    """Name for people, id on the Hub where there is a usual one, whether it is the user's own files, and the task."""

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
    "volumes": DataSet("Volumes in folders", needs_files=True, task="video-classification"),
}
