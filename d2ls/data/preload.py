"""The fork server of the workers imports this module once, so that each worker starts with everything in memory."""

from d2ls.data.transforms import import_albumentations

import_albumentations()
