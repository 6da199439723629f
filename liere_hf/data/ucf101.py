from ..configuration import DataArguments
from .sources import Data


def load_ucf101(arguments: DataArguments, seed: int) -> Data:
    raise NotImplementedError
