"""The command `liere-hf`.

It is a package of its own because importing anything below `liere_hf` imports torch and transformers, which takes
seconds; help and a mistyped option must not wait for that.
"""
