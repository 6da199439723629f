"""Cards of Spaces that show the page of `liere-hf app`."""

from huggingface_hub import SpaceCard, SpaceCardData

from ..run_directory import Conversion, Run
from .model_card import TAGS, build_model_card

TEXT = """What the model answers for a picture, clip or volume, where it looks, and what its rotations do to scores
between patches. The page is that of `liere-hf app`; the model is in the folder `{folder}`.
"""


def build_space_card(checkpoint: Run | Conversion, repo_id: str) -> SpaceCard:
    """The card of a Space with a checkpoint.

    Args:
        repo_id: `ORG/NAME` of the Space.
    """
    folder, model = repo_id.rpartition("/")[2], build_model_card(checkpoint).data
    data = SpaceCardData(
        title=folder,
        sdk="gradio",
        app_file="app.py",
        license=model.license,
        license_name=model.get("license_name"),
        tags=TAGS,
        short_description="Answers, attention and rotations of a LieRE model",
    )
    text = f"# {model.model_name}\n\n{TEXT.format(folder=folder)}"
    return SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
