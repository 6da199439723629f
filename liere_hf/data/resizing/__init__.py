"""Step 3: pixels to the size that the model takes, in training and in evaluation, one module for each medium."""
