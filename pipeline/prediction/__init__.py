"""From images to maps: inputs, scenes, overlays, submissions, workers."""
