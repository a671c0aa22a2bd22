"""Requests that schemathesis makes up from the OpenAPI description: the answers are those that it describes."""

import importlib.util
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # schemathesis does
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_answers_are_as_described(server: Any) -> None:
    import schemathesis
    from schemathesis import checks

    checks.load_all_checks()
    wanted = [checks.CHECKS.get_one(name) for name in CHECKS]
    schema = schemathesis.openapi.from_url(f"{server.address}/api/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 16
    for operation in operations:

        @settings(
            max_examples=4,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def is_answered(case: Any) -> None:
            if "image_id" in (case.path_parameters or {}) and not case.path.endswith("everything"):
                case.path_parameters["image_id"] = server.ids[0]
            case.call_and_validate(checks=wanted)

        is_answered()
