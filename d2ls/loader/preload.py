"""Imported once by the fork server of the workers, so that a worker starts with everything in memory."""

import d2ls.loader.making
import d2ls.loader.photometric
import d2ls.loader.workers

d2ls.loader.photometric.import_albumentations()
