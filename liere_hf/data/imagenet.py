from ..configuration import DataArguments
from .sources import Data


def load_imagenet(arguments: DataArguments, seed: int) -> Data:
    raise NotImplementedError
