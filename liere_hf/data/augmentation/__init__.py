"""Step 4: random changes of whole training batches, and the shuffling of patches in evaluation.

Every example has its own random choices; equal choices are computed together. Pixels have the shape
(batch, channels, height, width), or (batch, frames, channels, height, width), where all frames of a clip get the same.
"""
