"""The Hub's checks of the metadata in a model or dataset card."""

import re
from typing import Any

LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0
openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
PIPELINE_TAGS = """
any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
image-segmentation image-text-to-text image-to-3d image-to-image image-to-text image-to-video keypoint-detection
mask-generation object-detection other question-answering reinforcement-learning robotics sentence-similarity
summarization table-question-answering tabular-classification tabular-regression text-classification
text-generation text-ranking text-to-3d text-to-audio text-to-image text-to-speech text-to-video
time-series-forecasting token-classification translation unconditional-image-generation video-classification
video-text-to-text video-to-video visual-document-retrieval visual-question-answering voice-activity-detection
zero-shot-classification zero-shot-image-classification zero-shot-object-detection
"""

SPACE_SDKS = ("gradio", "docker", "static")
MAX_SHORT_DESCRIPTION = 60


def read_card(text: str, kind: str = "model") -> tuple[dict[str, Any], list[str], list[str]]:
    """The metadata of a README.md, with the Hub's errors and warnings about it."""
    import yaml

    block = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    try:
        metadata = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        return {}, [f"Invalid YAML: {' '.join(str(error).split())}"], []
    if metadata is None:
        return {}, [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return {}, ["metadata must be a mapping"], []
    return metadata, _errors(metadata) + (_errors_of_space(metadata) if kind == "space" else []), []


def _errors(metadata: dict[str, Any]) -> list[str]:
    errors = []
    for name, allowed in (("license", LICENSES.split()), ("pipeline_tag", PIPELINE_TAGS.split())):
        value = metadata.get(name)
        values = value if isinstance(value, list) and name == "license" else [value]
        if value is not None and not all(value in allowed for value in values):
            errors.append(f'"{name}" must be one of [{", ".join(allowed)}]')
    tags = metadata.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        errors.append('"tags" must be an array of strings')
    if "model-index" in metadata:
        _check_model_index(metadata["model-index"], errors)
    return errors


def _errors_of_space(metadata: dict[str, Any]) -> list[str]:
    errors = []
    if metadata.get("sdk") not in SPACE_SDKS:
        errors.append(f'"sdk" must be one of [{", ".join(SPACE_SDKS)}]')
    if len(metadata.get("short_description", "")) > MAX_SHORT_DESCRIPTION:
        errors.append(
            f'"short_description" length must be less than or equal to {MAX_SHORT_DESCRIPTION} characters long'
        )
    return errors


def _check_model_index(models: Any, errors: list[str]) -> None:
    for model, model_name in _mappings(models, "model-index", errors):
        _require(["name"], model, model_name, errors)
        for result, result_name in _mappings(model.get("results"), f"{model_name}.results", errors):
            _require(["task.type", "dataset.type", "dataset.name"], result, result_name, errors)
            for metric, metric_name in _mappings(result.get("metrics"), f"{result_name}.metrics", errors):
                _require(["type", "value"], metric, metric_name, errors)


def _mappings(values: Any, name: str, errors: list[str]) -> list[tuple[dict[str, Any], str]]:
    """The items of an array of mappings, with their names. Anything else is an error."""
    if not isinstance(values, list):
        errors.append(f'"{name}" must be an array')
        return []
    errors += [f'"{name}[{i}]" must be an object' for i, value in enumerate(values) if not isinstance(value, dict)]
    return [(value, f"{name}[{i}]") for i, value in enumerate(values) if isinstance(value, dict)]


def _require(keys: list[str], value: dict[str, Any], name: str, errors: list[str]) -> None:
    for key in keys:
        found: Any = value
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None or found == "":
            errors.append(f'"{name}.{key}" is required')
