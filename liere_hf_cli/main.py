"""The arguments of the command `liere-hf`, and how it reports errors."""

import argparse
import difflib
import importlib.metadata
import os
import select
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from .option_names import conversion_option_names, prediction_option_names, recipe_option_names

INTERRUPTED = 130
# How a command continues a training that was interrupted. Other commands start anew.
HOW_TO_CONTINUE = {
    "train": "; continue with --resume_from_checkpoint true",
    "reproduce": "; the same command continues from it",
}
DESCRIPTION = "Train, evaluate, convert, publish and measure LieRE vision transformers."
MODEL_HELP = "directory or Hub id of the model"
INPUT_SIZE_HELP = "size of inputs in pixels, one value or one per axis (default: the training size)"
RECIPE_HELP = "name of a built-in recipe, or path of a YAML file"
CONFIG_HELP = "YAML file whose options override those of the recipe"
RECIPE_EPILOG = (
    "Every option of a recipe is also a flag, for example --learning_rate 0.001 --position_encoding rope_mixed. "
    "With a recipe before it, --help lists them all, with their values in the recipe."
)
# The extra that installs a module which a core install lacks: see the optional dependencies in pyproject.toml.
EXTRAS = {
    "av": "video",
    "nibabel": "volumes",
    "matplotlib": "plots",
    "timm": "conversion",
    "peft": "lora",
    "gradio": "app",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Bad input ends in one sentence on standard error and exit code 2, a failed run in exit code 1."""
    parser = _parser()
    arguments, flags = parser.parse_known_args(argv)
    message = _unknown_option(flags, arguments.option_names)
    if message:
        parser.exit(2, f"liere-hf {arguments.command}: error: {message}\n")
    try:
        code = arguments.run(arguments, flags)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "interrupted"
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        code, message = 1, None
    except Exception as error:
        code, message = _explained(error, arguments.command)
    else:
        message = None
    if message:
        print(f"liere-hf {arguments.command}: {message}", file=sys.stderr)
    sys.exit(code)


def _stdout_is_closed() -> bool:
    """Whether nobody reads the output any more, as behind `| head`; what is left of it is then dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    is_closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_closed


def _unknown_option(flags: list[str], option_names: Callable[[], set[str]] | None) -> str | None:
    """A sentence about the first of the remaining arguments that the command does not know, before slow imports.

    Args:
        flags: what argparse did not recognize.
        option_names: gives the names of further options that the command takes; None if it takes none.
    """
    known = option_names() if option_names and flags else set()
    for position, flag in enumerate(flags):
        if option_names and position > 0 and not _is_option(flag):
            continue  # the value of an option
        name = flag.partition("=")[0]
        if not _is_option(flag):
            return f"unexpected argument {flag!r}"
        if not name.startswith("--") or name.lstrip("-").replace("-", "_") not in known:
            close = difflib.get_close_matches(name.lstrip("-"), known, n=1)
            return f"unknown option {name!r}" + (f", did you mean '--{close[0]}'?" if close else "")
    return None


def _is_option(text: str) -> bool:
    """Whether an argument is an option rather than a value, which may be a negative number."""
    try:
        float(text)
    except ValueError:
        return text.startswith("-") and text != "-"
    return False


def _explained(error: Exception, command: str) -> tuple[int, str]:
    """Exit code and message of an interruption or an error that the user can fix. Others are raised again."""
    from liere_hf.errors import InputError, RunError, TrainingInterruptedError, sentence

    if isinstance(error, TrainingInterruptedError):
        return INTERRUPTED, f"{error}{HOW_TO_CONTINUE.get(command, '') if error.can_resume else ''}"
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module in EXTRAS:
            return 2, f'error: {module} is not installed: pip install "liere_hf[{EXTRAS[module]}]"'
    if isinstance(error, InputError | RunError):
        return 2 if isinstance(error, InputError) else 1, f"error: {sentence(error)}"
    raise error


class _ConvertibleModels(argparse.Action):
    """Prints which models of a library can be converted, and why others cannot."""

    def __call__(self, parser: argparse.ArgumentParser, namespace, library: str, option: str | None = None) -> None:
        import yaml

        folder = Path(find_spec("liere_hf").submodule_search_locations[0])
        models = yaml.safe_load((folder / "conversion" / f"{library}_models.yaml").read_text())
        width = max(map(len, models))
        for name, obstacles in models.items():
            print(f"{name:<{width}}  {'exact' if not obstacles else 'not: ' + ', '.join(obstacles)}")
        parser.exit()


class _Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str):
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *args, **kwargs) -> None:
        print(importlib.metadata.version("liere_hf"))
        parser.exit()


class _OptionHelp(argparse.Action):
    """The help of a command, and that of the options that dataclasses declare, which takes as long as their imports.

    Those of a recipe are shown once it is named.
    """

    def __init__(self, option_strings: list[str], dest: str):
        super().__init__(option_strings, dest, nargs=0, help="show this message and exit; with a recipe, every option")

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *args, **kwargs) -> None:
        parser.print_help()
        command, recipe = parser.prog.split()[-1], getattr(namespace, "recipe", None)
        if recipe is None and command in ("train", "evaluate", "compare"):
            parser.exit()
        from liere_hf.errors import InputError, sentence

        try:
            _print_options(command, recipe, getattr(namespace, "config", None), getattr(namespace, "preset", None))
        except InputError as error:
            parser.exit(2, f"{parser.prog}: error: {sentence(error)}\n")
        parser.exit()


def _print_options(command: str, recipe: str | None, config: str | None, preset: str | None) -> None:
    from liere_hf.configuration.option_help import print_dataclass_options, print_recipe_options

    if recipe is not None:
        print_recipe_options(recipe, config, preset)
    elif command == "convert":
        from liere_hf.conversion import ConversionOptions

        print_dataclass_options(ConversionOptions, "Options of a conversion")
    else:
        from liere_hf.configuration.prediction_options import PredictionOptions

        print_dataclass_options(PredictionOptions, "Options of predictions")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="liere-hf", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser(
        "train", help="train a model with a recipe", epilog=RECIPE_EPILOG, allow_abbrev=False, add_help=False
    )
    train.add_argument("-h", "--help", action=_OptionHelp)
    train.add_argument("recipe", help=RECIPE_HELP)
    train.add_argument("--config", help=CONFIG_HELP)
    train.add_argument(
        "--preset", choices=("published",), help="generators start and learn as in the paper, whatever the recipe"
    )
    train.set_defaults(run=_train, option_names=recipe_option_names)

    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a saved model on the data of a recipe",
        epilog=RECIPE_EPILOG,
        allow_abbrev=False,
        add_help=False,
    )
    evaluate.add_argument("-h", "--help", action=_OptionHelp)
    evaluate.add_argument("model", help=MODEL_HELP)
    evaluate.add_argument("recipe", help=RECIPE_HELP)
    evaluate.add_argument("--config", help=CONFIG_HELP)
    evaluate.add_argument("--results_file", type=Path, help="also write the metrics to this JSON file")
    evaluate.set_defaults(run=_evaluate, option_names=recipe_option_names)

    predict = commands.add_parser(
        "predict", help="say what a saved model sees in pictures, clips or volumes", allow_abbrev=False, add_help=False
    )
    predict.add_argument("-h", "--help", action=_OptionHelp)
    predict.add_argument("model", help=MODEL_HELP)
    predict.add_argument("paths", nargs="+", metavar="PATH", help="files, and folders of files at any depth")
    predict.add_argument(
        "--output", type=Path, help="also write all predictions to this file, which ends with .csv, .parquet or .json"
    )
    predict.set_defaults(run=_predict, option_names=prediction_option_names)

    explain = commands.add_parser(
        "explain",
        help="answers for pictures, clips or volumes, and where the model looks",
        allow_abbrev=False,
        add_help=False,
    )
    explain.add_argument("-h", "--help", action=_OptionHelp)
    explain.add_argument("model", help=MODEL_HELP)
    explain.add_argument("paths", nargs="+", metavar="PATH", help="files, and folders of files at any depth")
    explain.add_argument(
        "--layers",
        nargs="+",
        type=int,
        metavar="N",
        help="show maps after these layers, counted from 1 (default: the last one, which is the whole model)",
    )
    explain.add_argument("--output_dir", type=Path, default=Path(), help="directory for pictures and numbers")
    explain.set_defaults(run=_explain, option_names=prediction_option_names)

    rotations = commands.add_parser(
        "rotations", help="what the rotations of a model do to scores between patches", allow_abbrev=False
    )
    rotations.add_argument("model", help=MODEL_HELP)
    rotations.add_argument(
        "--layers",
        nargs="+",
        type=int,
        metavar="N",
        help="layers, counted from 1 (default: the first, the middle and the last one; of commutators all)",
    )
    rotations.add_argument(
        "--heads",
        nargs="+",
        type=int,
        metavar="N",
        help="heads, counted from 1 (default: all; of maps over offsets, the first four, or the first with 3 axes)",
    )
    rotations.add_argument("--input_size", nargs="+", type=int, metavar="PIXELS", help=INPUT_SIZE_HELP)
    rotations.add_argument("--output_dir", type=Path, default=Path(), help="directory for pictures and numbers")
    rotations.set_defaults(run=_rotations, option_names=None)

    compare = commands.add_parser(
        "compare",
        help="compare saved models on the data of a recipe",
        epilog=RECIPE_EPILOG,
        allow_abbrev=False,
        add_help=False,
    )
    compare.add_argument("-h", "--help", action=_OptionHelp)
    compare.add_argument(
        "models", nargs="+", metavar="MODEL", help="directories or Hub ids; all are compared with the first"
    )
    compare.add_argument("--recipe", required=True, help=RECIPE_HELP)
    compare.add_argument("--config", help=CONFIG_HELP)
    compare.add_argument("--output_dir", type=Path, default=Path(), help="directory for tables and figure")
    compare.set_defaults(run=_compare, option_names=recipe_option_names)

    info = commands.add_parser(
        "info", help="parameters, FLOPs, encoding, training, results and files of a model", allow_abbrev=False
    )
    info.add_argument("model", help=MODEL_HELP)
    info.add_argument("--input_size", nargs="+", type=int, metavar="PIXELS", help=INPUT_SIZE_HELP)
    info.add_argument("--json", type=Path, metavar="FILE", help="also write it to this JSON file")
    info.set_defaults(run=_info, option_names=None)

    app = commands.add_parser(
        "app", help="a page in the browser: answers, where models look, what rotations do", allow_abbrev=False
    )
    app.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="directories or Hub ids (default: in a clone of the repository, those in checkpoints/)",
    )
    app.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, for this machine only)"
    )
    app.add_argument("--port", type=int, help="port to listen at (default: the first free one from 7860 on)")
    app.add_argument("--use_cpu", action="store_true", help="do not use a GPU")
    app.set_defaults(run=_app, option_names=None)

    recipes = commands.add_parser("recipes", help="list the built-in recipes")
    recipes.set_defaults(run=_recipes, option_names=None)

    launch_config = commands.add_parser(
        "launch-config", help="print the path of a configuration for accelerate launch"
    )
    launch_config.add_argument("name", choices=[*launch_configs()], help="name of the configuration")
    launch_config.set_defaults(run=_launch_config, option_names=None)

    convert = commands.add_parser(
        "convert",
        help="convert a checkpoint of other code to a model of this package",
        allow_abbrev=False,
        add_help=False,
    )
    convert.add_argument("-h", "--help", action=_OptionHelp)
    convert.add_argument("source", help="path of the checkpoint; with --from timm, vit or dinov3 also a Hub id")
    convert.add_argument("output_dir", type=Path, help="directory to create")
    convert.add_argument(
        "--from",
        dest="kind",
        required=True,
        choices=["liere", "timm", "vit", "dinov3"],
        help="origin: the authors' code, timm's rotary models, transformers' ViT, DeiT, DINOv2, SigLIP, VideoMAE and "
        "ViViT (vit), or its DINOv3",
    )
    convert.add_argument(
        "--list",
        action=_ConvertibleModels,
        choices=["timm"],
        help="print which rotary models of timm can be converted exactly, and why others cannot",
    )
    convert.set_defaults(run=_convert, option_names=conversion_option_names)

    export = commands.add_parser(
        "export", help="convert a model of this package to a checkpoint of other code", allow_abbrev=False
    )
    export.add_argument("model", help=MODEL_HELP)
    export.add_argument("output_dir", type=Path, help="directory to create")
    export.add_argument(
        "--to",
        dest="kind",
        required=True,
        choices=["dinov3", "timm", "liere"],
        help="target: transformers' DINOv3, timm, or the authors' code",
    )
    export.add_argument(
        "--timm_model", metavar="NAME", help="timm: the architecture, such as vit_small_patch16_dinov3"
    )
    export.set_defaults(run=_export, option_names=None)

    publish = commands.add_parser(
        "publish", help="upload a finished run or a converted model to the Hub", allow_abbrev=False
    )
    publish.add_argument(
        "directory", type=Path, metavar="RUN_DIR", help="output directory of liere-hf train or liere-hf convert"
    )
    publish.add_argument("repo_id", metavar="ORG/NAME", help="repository on the Hub, created if it does not exist")
    publish.add_argument("--private", action="store_true", help="make a new repository private")
    publish.add_argument("--revision", help="branch, created if it does not exist (default: main)")
    publish.add_argument("--tag", help="tag for the published commit")
    publish.add_argument("--overwrite", action="store_true", help="replace a different model in the repository")
    publish.add_argument(
        "--space", action="store_true", help="publish the page of liere-hf app with the model, as a Space"
    )
    publish.add_argument("--dry-run", action="store_true", help="show the files and the card, but upload nothing")
    publish.set_defaults(run=_publish, option_names=None)

    release = commands.add_parser("release", help="build and publish the checkpoints of a release list")
    release.add_argument("--releases", type=Path, default=Path("model_cards/releases.yaml"), help="file of the list")
    release.add_argument("--sources", type=Path, help="directory of the original checkpoints that the list names")
    release.add_argument("--organization", help="organization on the Hub, instead of the list's")
    release.add_argument("--private", action="store_true", help="make new repositories private")
    release.add_argument("--update", action="store_true", help="update the list and the cards, but upload nothing")
    release.add_argument("--dry-run", action="store_true", help="build and check, but upload nothing")
    release.set_defaults(run=_release, option_names=None)

    reproduce = commands.add_parser(
        "reproduce", help="run an experiment of the paper", epilog=RECIPE_EPILOG, allow_abbrev=False
    )
    reproduce.add_argument("experiment", help="name of the experiment, or list to show them all")
    reproduce.add_argument("--scale", default="cpu", help="paper, gpu or cpu (default: cpu)")
    reproduce.add_argument(
        "--data_dir",
        nargs="+",
        default=[],
        metavar="DATASET=DIRECTORY",
        help="directories of local data sets, to use instead of the Hub",
    )
    reproduce.add_argument(
        "--results_dir", type=Path, default=Path("results"), help="directory for tables and figures"
    )
    reproduce.add_argument("--work_dir", type=Path, default=Path("runs/reproduction"), help="directory for models")
    reproduce.add_argument(
        "--redraw", action="store_true", help="only draw the figure again, from the results that are there"
    )
    reproduce.set_defaults(run=_reproduce, option_names=recipe_option_names)

    demo = commands.add_parser("demo", help="LieRE, RoPE-Mixed and absolute positions on the spatial task, on a CPU")
    demo.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="where models, table and figure go")
    demo.set_defaults(run=_demo, option_names=None)

    benchmark = commands.add_parser("benchmark", help="measure speed and memory on this machine")
    benchmark.add_argument(
        "subject",
        nargs="?",
        choices=[
            "models",
            "exponential",
            "errors",
            "rotations",
            "compilation",
            "backbones",
            "data",
            "prediction",
            "startup",
        ],
        default="models",
        help="models (the default), exponentials of skew-symmetric matrices, their errors, parts of the code of "
        "rotations, compiled models, converted DINOv3 models, data loading, predictions for files, or how soon "
        "commands answer",
    )
    benchmark.add_argument("--model", help="prediction, startup: directory or Hub id of an image classifier")
    benchmark.add_argument("--preset", default="tiny-cifar", help="models: tiny-cifar, base-imagenet or base-video")
    benchmark.add_argument("--device", help="cpu or cuda (default: cuda if available)")
    benchmark.add_argument("--batch_size", type=int, help="models: batch size, instead of the preset's")
    benchmark.add_argument(
        "--contestants",
        nargs="+",
        metavar="NAME",
        help="models: contestants in addition to transformers' ViT and the absolute model (default: all)",
    )
    benchmark.add_argument("--rounds", type=int, default=9, help="number of measurements (not for errors and data)")
    benchmark.add_argument(
        "--output_dir", type=Path, default=Path("runs/benchmark"), help="models: directory for table, chart and JSON"
    )
    benchmark.add_argument(
        "--results_file", type=Path, help="all but models: also write the results to this JSON file"
    )
    benchmark.set_defaults(run=_benchmark, option_names=None)
    return parser


def launch_configs() -> dict[str, Path]:
    """Paths of the configurations for `accelerate launch` and of a script for Slurm, by name."""
    folder = Path(find_spec("liere_hf").submodule_search_locations[0]) / "configuration" / "launch"
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".sh")}


# Each command imports what it needs itself, so that it does not wait for the imports of the others.


def _without_library_bars(command: Callable[[argparse.Namespace, list[str]], int]) -> Callable[..., int]:
    """A command that uses the libraries shows this package's progress instead of theirs."""

    def run(arguments: argparse.Namespace, flags: list[str]) -> int:
        from liere_hf.progress import hide_library_bars

        hide_library_bars()
        return command(arguments, flags)

    return run


@_without_library_bars
def _train(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.configuration import parse_recipe
    from liere_hf.metric_display import print_metrics
    from liere_hf.training.run import train

    metrics = train(*parse_recipe(arguments.recipe, flags, arguments.config, arguments.preset))
    print_metrics(metrics, prefix="eval_")
    if "test_loss" in metrics:
        print("test split:")
        print_metrics(metrics, prefix="test_")
    return 0


def _recipes(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.configuration.option_help import print_recipes

    print_recipes()
    return 0


@_without_library_bars
def _evaluate(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.configuration import parse_recipe
    from liere_hf.evaluation import evaluate
    from liere_hf.metric_display import print_metrics
    from liere_hf.output_files import require_writable_file, write_json

    require_writable_file("results_file", arguments.results_file)
    flags = [*flags, "--model_name_or_path", arguments.model]
    metrics = evaluate(*parse_recipe(arguments.recipe, flags, arguments.config))
    print(f"{metrics['examples']:,} examples: {metrics['split']}")
    print_metrics(metrics)
    if arguments.results_file:
        write_json(arguments.results_file, metrics)
    return 0


@_without_library_bars
def _predict(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.configuration import parse_flags
    from liere_hf.configuration.prediction_options import PredictionOptions
    from liere_hf.prediction import predict
    from liere_hf.prediction_files import print_predictions, require_output, write_predictions

    require_output(arguments.output)
    predictions = predict(arguments.model, arguments.paths, parse_flags(PredictionOptions, flags))
    print_predictions(predictions)
    if arguments.output:
        write_predictions(arguments.output, predictions)
    return 0


@_without_library_bars
def _explain(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.configuration import parse_flags
    from liere_hf.configuration.prediction_options import PredictionOptions
    from liere_hf.explanation import explain, write_explanations
    from liere_hf.output_files import require_writable_directory
    from liere_hf.prediction_files import print_predictions

    require_writable_directory("output_dir", arguments.output_dir)
    options = parse_flags(PredictionOptions, flags)
    explanations = explain(arguments.model, arguments.paths, options, arguments.layers)
    print_predictions(explanations.predictions)
    print(*write_explanations(arguments.output_dir, arguments.model, explanations), sep="\n")
    return 0


@_without_library_bars
def _rotations(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.model_loading import load_saved_model
    from liere_hf.output_files import require_writable_directory
    from liere_hf.plots import rotation_plots

    require_writable_directory("output_dir", arguments.output_dir)
    model = load_saved_model(arguments.model)
    found = rotation_plots(model, arguments.layers, arguments.heads, arguments.input_size)
    print(*found.write(arguments.output_dir, arguments.model), sep="\n")
    for name, reason in found.missing.items():
        print(f"no picture of {name}: {reason}")
    return 0


@_without_library_bars
def _compare(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.comparison import compare, print_comparison
    from liere_hf.comparison_files import COMPARISON_FILE, write_comparison
    from liere_hf.output_files import require_writable_directory, write_bytes
    from liere_hf.plots.comparison_figure import plot_comparison

    require_writable_directory("output_dir", arguments.output_dir)
    comparison = compare(arguments.models, arguments.recipe, flags, arguments.config)
    print_comparison(comparison)
    figure = arguments.output_dir / f"{COMPARISON_FILE}.png"
    paths = write_comparison(arguments.output_dir, comparison)
    write_bytes(figure, plot_comparison(comparison).png())
    print(*paths, figure, sep="\n")
    return 0


@_without_library_bars
def _info(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.model_info import model_info, print_info
    from liere_hf.output_files import require_writable_file, write_json

    require_writable_file("json", arguments.json)
    info = model_info(arguments.model, arguments.input_size)
    print_info(info)
    if arguments.json:
        write_json(arguments.json, info)
    return 0


@_without_library_bars
def _app(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.app.page import serve

    serve(arguments.models, arguments.host, arguments.port, arguments.use_cpu)
    return 0


def _launch_config(arguments: argparse.Namespace, flags: list[str]) -> int:
    print(launch_configs()[arguments.name])
    return 0


@_without_library_bars
def _convert(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.configuration import parse_flags
    from liere_hf.conversion import ConversionOptions, convert
    from liere_hf.output_files import require_writable_directory

    require_writable_directory("output_dir", arguments.output_dir)
    model = convert(arguments.source, arguments.output_dir, arguments.kind, parse_flags(ConversionOptions, flags))
    print(f"{arguments.output_dir}: {type(model).__name__}, {model.num_parameters():,} parameters")
    return 0


@_without_library_bars
def _export(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.conversion import export
    from liere_hf.output_files import require_writable_directory

    require_writable_directory("output_dir", arguments.output_dir)
    export(arguments.model, arguments.output_dir, arguments.kind, arguments.timm_model)
    print(arguments.output_dir)
    return 0


@_without_library_bars
def _publish(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.hub import preview, publish

    if arguments.dry_run:
        preview(arguments.directory, arguments.repo_id, arguments.space, arguments.revision, arguments.tag)
        return 0
    publication = publish(
        arguments.directory,
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision,
        tag=arguments.tag,
        overwrite=arguments.overwrite,
        space=arguments.space,
    )
    print(f"{'published' if publication.changed else 'already there, identical'}: {publication.url}")
    return 0


@_without_library_bars
def _release(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.releases import publish_releases, read_releases, update_releases

    releases = read_releases(arguments.releases, arguments.sources, arguments.organization)
    if arguments.update:
        update_releases(releases)
    else:
        publish_releases(releases, arguments.private, arguments.dry_run)
    return 0


@_without_library_bars
def _reproduce(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.errors import InputError
    from liere_hf.output_files import require_writable_directory
    from liere_hf.reproduction.reproduce import list_experiments, redraw, reproduce

    if arguments.experiment == "list":
        list_experiments()
        return 0
    require_writable_directory("results_dir", arguments.results_dir)
    if arguments.redraw:
        if flags:
            raise InputError(f"{flags[0]} is given with --redraw, which draws results as they are: leave it out")
        redraw(arguments.experiment, arguments.scale, arguments.results_dir)
        return 0
    require_writable_directory("work_dir", arguments.work_dir)
    for pair in arguments.data_dir:
        if "=" not in pair:
            raise InputError(f"data_dir is {pair!r}, allowed is DATASET=DIRECTORY")
    data_dirs = dict(pair.split("=", 1) for pair in arguments.data_dir)
    reproduce(arguments.experiment, arguments.scale, arguments.results_dir, arguments.work_dir, data_dirs, flags)
    return 0


@_without_library_bars
def _demo(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.demo import run_demo
    from liere_hf.output_files import require_writable_directory

    require_writable_directory("output_dir", arguments.output_dir)
    run_demo(arguments.output_dir)
    return 0


@_without_library_bars
def _benchmark(arguments: argparse.Namespace, flags: list[str]) -> int:
    from liere_hf.output_files import require_writable_directory, require_writable_file, write_json

    require_writable_directory("output_dir", arguments.output_dir)
    require_writable_file("results_file", arguments.results_file)
    if arguments.subject == "models":
        from liere_hf.benchmark.models import benchmark_models
        from liere_hf.benchmark.table import report_benchmark

        results = benchmark_models(
            arguments.preset, arguments.device, arguments.batch_size, arguments.rounds, arguments.contestants
        )
        report_benchmark(results, arguments.output_dir)
        return 0
    if arguments.subject == "data":
        from liere_hf.benchmark.data import benchmark_data

        results = benchmark_data()
    elif arguments.subject in ("prediction", "startup"):
        from liere_hf.benchmark.prediction import benchmark_prediction
        from liere_hf.benchmark.startup import benchmark_startup
        from liere_hf.errors import InputError

        if arguments.model is None:
            raise InputError(f"model is not given, benchmark {arguments.subject} needs an image classifier")
        measure = benchmark_prediction if arguments.subject == "prediction" else benchmark_startup
        results = measure(arguments.model, arguments.rounds)
    elif arguments.subject == "errors":
        from liere_hf.benchmark.exponential import measure_errors

        results = measure_errors(arguments.device)
    elif arguments.subject == "rotations":
        from liere_hf.benchmark.rotations import benchmark_rotations

        results = benchmark_rotations(arguments.rounds)
    elif arguments.subject == "compilation":
        from liere_hf.benchmark.compilation import benchmark_compilation

        results = benchmark_compilation(arguments.device, arguments.rounds)
    elif arguments.subject == "backbones":
        from liere_hf.benchmark.backbones import benchmark_backbones

        results = benchmark_backbones(arguments.rounds)
    else:
        from liere_hf.benchmark.exponential import benchmark_exponential

        results = benchmark_exponential(arguments.device, arguments.rounds)
    if arguments.results_file:
        write_json(arguments.results_file, results)
    return 0
