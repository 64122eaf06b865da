"""Calibration: from recorded runs to a cluster whose iteration times, overheads and slowdowns are those that were measured."""

from .fit import Calibration, ServerFit, calibrate
from .preset import cluster_text, write_cluster

__all__ = ["Calibration", "ServerFit", "calibrate", "cluster_text", "write_cluster"]
