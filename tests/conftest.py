"""For all tests: property tests are not timed; a failure prints how to draw the same examples again."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "d2ls", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no failure
settings.load_profile("d2ls")
