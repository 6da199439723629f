"""Import this where only the number of retries matters: clients then wait a tenth as long between them."""

import time

_sleep = time.sleep


def _sleep_less(seconds: float) -> None:
    _sleep(seconds / 10)


time.sleep = _sleep_less
