"""What all HTTP bodies share: frozen, strict about unknown fields, no NaN or Infinity."""

from pydantic import BaseModel, ConfigDict


class Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Empty(Contract):
    """The answer of a request that has nothing to say beyond its status."""
