"""`accelerate launch -m liere_hf.training RECIPE ...` is `liere-hf train RECIPE ...` in every process."""

import sys

from ..cli import main

main(["train", *sys.argv[1:]])
