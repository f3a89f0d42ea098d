"""Lambda's own description of its API, where it lies at hand: it is Lambda's text and no part of this project.

curl -o FILE https://cloud.lambda.ai/api/v1/openapi.json      and      export LAMBDA_OPENAPI=FILE
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.cloud.served import Asked

PLACES = (os.environ.get("LAMBDA_OPENAPI", ""), "/work/shared/data/lambda-openapi-1.8.3.json")


class Description:
    """Checks requests and answers. `checked` counts what passed."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self.checked = 0
        self.seen: set[tuple[str, str]] = set()

    def __call__(self, asked: Asked, status: int, body: Any) -> None:
        """Raises jsonschema's ValidationError, or KeyError for a status that is not described."""
        if status == 429:
            return  # the limits are described in words only
        path, operation = self._operation(asked)
        if asked.body is not None and status == 200:
            self._validate(operation["requestBody"], asked.body)
        self._validate(operation["responses"][str(status)], body)
        self.checked += 1
        self.seen.add((asked.method, path))

    def _operation(self, asked: Asked) -> tuple[str, Any]:
        for path, methods in self._document["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), asked.path):
                return path, methods[asked.method.lower()]
        raise KeyError(asked.path)

    def _validate(self, described: Any, body: Any) -> None:
        schema = described["content"]["application/json"]["schema"]
        Draft202012Validator({"components": self._document["components"], **schema}).validate(body)


def description() -> Description:
    for place in PLACES:
        if place and Path(place).is_file():
            return Description(json.loads(Path(place).read_text(encoding="utf-8")))
    pytest.skip(f"LAMBDA'S API DESCRIPTION IS NOT HERE, SO NOTHING IS CHECKED AGAINST IT: {__doc__}")
