from ..configuration import DataArguments
from .sources import Data


def load_volumes(arguments: DataArguments, seed: int) -> Data:
    raise NotImplementedError
