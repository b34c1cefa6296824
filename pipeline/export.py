"""`python -m pipeline.export MODEL model.onnx`: a trained model as one file that runs without this project."""

from d2ls import storage
from d2ls.errors import ConfigError
from pipeline.cli import add_tracking_uri, parser, run_command

DESCRIPTION = (
    "Writes a trained model as ONNX or as a torch.export program (.pt2): input raw pixels (float32, B bands H W), "
    "output class probabilities (B K H W). OUTPUT is written only if onnxruntime or torch computes the same from it as "
    "the network."
)
EXAMPLES = """\
  python -m pipeline.export models:/d2ls-loveda@champion loveda.onnx        # any number of images of any size from 64
  python -m pipeline.export runs/demo-final demo.onnx --size 512           # only 512 x 512, as QGIS Deepness needs it
  python -m pipeline.export runs/demo-final demo.pt2                       # for torch.export.load
"""


def main(argv: list[str] | None = None) -> None:
    """Parses, exports, prints the inputs and outputs of the file."""
    arguments = parser("pipeline.export", DESCRIPTION, EXAMPLES)
    add = arguments.add_argument
    add("model", metavar="MODEL", help="models:/name@alias, models:/name/version, runs:/id/path, or a folder")
    add("output", metavar="OUTPUT", help="local file: model.onnx or model.pt2")
    add("--size", type=int, metavar="N", help="height and width of all images (default: free, at least 64)")
    add("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    add_tracking_uri(arguments)
    values = arguments.parse_args(argv)
    if not storage.is_local(values.output):
        raise ConfigError(f"{values.output}: name a local file, and copy it from there")
    target = storage.local_path(values.output)

    from d2ls.models.export import check_target, export_model
    from d2ls.models.saving import load_bundle
    from pipeline.models import fetch_model

    check_target(target, overwrite=values.overwrite)
    with fetch_model(values.model, tracking_uri=values.tracking_uri) as folder:
        network, info = load_bundle(folder, where=values.model)
    difference = export_model(network, info, target, size=values.size, overwrite=values.overwrite)
    sides = f"{values.size} {values.size}" if values.size else "H W"
    print(f"{target}: images (B {len(info.bands)} {sides}: {', '.join(info.bands)}; raw {info.dtype} values as "  # noqa: T201
          f"float32) to probabilities (B {info.classes.num_classes} {sides})")  # fmt: skip
    print(f"equal to the network within {difference:.1g} of the probabilities' standard deviation")  # noqa: T201
    if values.size != info.window:
        print(f"the model was trained with windows of {info.window} pixels: other sizes give other results, "  # noqa: T201
              f"--size {info.window} fixes this one")  # fmt: skip


if __name__ == "__main__":
    run_command(main)
