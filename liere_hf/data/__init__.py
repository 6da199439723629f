"""Data sets as the model sees them: loading, decoding, augmentation."""
