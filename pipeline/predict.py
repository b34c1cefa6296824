"""`python -m pipeline.predict MODEL INPUT OUTPUT`: images of any size to georeferenced label maps."""

from pipeline.cli import run_command
from pipeline.prediction.arguments import parse_request

DESCRIPTION = (
    "Maps images with a trained model: one label per pixel, windows blended into each other, coordinates kept. Give "
    "the same command again to continue an interrupted map. Files that are not maps of the same scene and settings "
    "are never replaced without --overwrite."
)
EXAMPLES = """\
  python -m pipeline.predict models:/d2ls-loveda@champion scene.tif map.tif
  python -m pipeline.predict models:/d2ls-loveda@champion rgbn.tif map.tif --bands 1,2,3 --overlay
  python -m pipeline.predict runs/demo-final scenes/ maps/ --workers 4       # a folder, on four Ray workers
  python -m pipeline.predict runs/demo-final 'scenes/*.jpg' maps/ --format png
  python -m pipeline.predict runs/demo-final 16bit.tif map.tif --scale-range 0,10000 --probabilities
  python -m pipeline.predict runs/demo-final fine.tif map.tif --resample --tta flips
  python -m pipeline.predict runs/demo-final s3://bucket/scenes s3://bucket/maps
  python -m pipeline.predict runs/loveda LoveDA/Test loveda.zip --submission loveda
"""


def main(argv: list[str] | None = None) -> int:
    """Parses, maps every scene, prints the results; returns status 1 if a scene could not be mapped."""
    request = parse_request("pipeline.predict", DESCRIPTION, EXAMPLES, argv)
    if request.submission:
        from pipeline.prediction.submit import submit

        return submit(request)
    from pipeline.prediction.run import predict

    return predict(request)


if __name__ == "__main__":
    run_command(main)
