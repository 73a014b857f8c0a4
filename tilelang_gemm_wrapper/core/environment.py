"""What every row of one benchmark run has in common: when, on what, and with which versions."""

from __future__ import annotations

import datetime
import importlib.metadata
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__


@dataclass(frozen=True, slots=True)
class Environment:
    """The first columns of every row; the rows are derived from it."""

    date: str
    device: str
    driver: str
    package: str
    torch: str
    tilelang: str
    triton: str
    deep_gemm: str

    @classmethod
    def here(cls, device_name: str, driver: str | None) -> Environment:
        return cls(
            date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            device=device_name,
            driver=driver or "",
            package=__version__,
            torch=installed_version("torch"),
            tilelang=installed_version("tilelang"),
            triton=installed_version("triton"),
            deep_gemm=installed_version("sgl-deep-gemm") or installed_version("deep-gemm"),
        )

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


def installed_version(distribution: str) -> str:
    """Its version; "" where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
