"""`python -m liere_hf`, which `accelerate launch -m liere_hf` starts in each process."""

from liere_hf_cli.main import main

main()
