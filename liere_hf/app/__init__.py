"""A page in the browser: what models answer for a picture, where they look, and what their rotations do to scores."""
