"""The command `liere-hf`.

It is a separate package because importing any module of `liere_hf` imports torch and transformers, which takes
seconds. Help texts and errors about mistyped options must not wait for that.
"""
