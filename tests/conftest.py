"""For all tests: property tests are not timed, and on another machine's failure the same examples can be drawn again."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "d2ls", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no failure
settings.load_profile("d2ls")
