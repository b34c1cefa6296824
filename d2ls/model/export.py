"""The network as a program without Python, for any batch, height and width."""

import torch
from torch.export import Dim, ExportedProgram

from d2ls.model.baseline import Baseline
from d2ls.model.network import D2LS

SMALLEST_EXPORTED = 64


def export_program(model: D2LS | Baseline) -> ExportedProgram:
    """Exports a network in evaluation mode; batch, height and width stay free, height and width 64 at least.

    Below 64 the deepest map has a side of one pixel, where the exporter would need a second program.

    Args:
        model: any network of `build_model`; it is put into evaluation mode.

    Returns:
        A program from normalised images (B bands H W, float32) to `D2LSOutput`.
    """
    example = torch.zeros(2, model.config["bands"], 98, 135, device=next(model.parameters()).device)
    free = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    with torch.no_grad():
        return torch.export.export(model.eval(), (example,), dynamic_shapes=free)
