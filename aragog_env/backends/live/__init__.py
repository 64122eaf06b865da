"""Real servers as a backend: `LiveBackend` plays a scenario in real time, over endpoints that answer under the OpenAI API."""

from .backend import LiveBackend
from .options import LiveOptions

__all__ = ["LiveBackend", "LiveOptions"]
