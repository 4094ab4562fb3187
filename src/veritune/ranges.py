"""Named number ranges: one declaration gives the check, the wording and the invalid values.

Each range is an annotated type. Pydantic checks it where settings are built; a signature that
uses one documents itself.
"""

from typing import Annotated

from pydantic import Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""Any finite number."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number greater than 0."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number of at least 0."""

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A number from 0 to 1, both included."""

OpenFraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
"""A number strictly between 0 and 1."""

HalfFraction = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]
"""A number from 0 up to, not including, one half: a rate of label noise."""

OpenHalfFraction = Annotated[float, Field(gt=0, lt=0.5, allow_inf_nan=False)]
"""A number strictly between 0 and one half: a rate of label noise that must not vanish."""

LengthInTokens = Annotated[int, Field(ge=2)]
"""A whole number of at least 2: a token that bears loss needs one that it follows."""

PositiveInt = Annotated[int, Field(gt=0)]
"""A whole number of at least 1."""

NonNegativeInt = Annotated[int, Field(ge=0)]
"""A whole number of at least 0."""
