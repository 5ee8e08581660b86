"""What every test runs under."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A busy machine is slow at drawing examples too, which says nothing of the law under test.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
