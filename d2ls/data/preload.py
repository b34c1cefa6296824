"""Imported once by the fork server of the workers, so that a worker starts with everything in memory."""

import d2ls.data.dataset
import d2ls.data.photometric
import d2ls.data.workers

d2ls.data.photometric.import_albumentations()
