"""Step 2: encoded files to pixels, one module for each medium."""
