"""What travels to the Hub: the model and its parts, importing only torch, transformers and each other."""
