"""What devices draw, how hot they are and how busy: sensors, a sampling thread, recordings that replay as sensors.

    sensors, missing = find_sensors()
    with Sampler(sensors) as sampler:
        ...
"""

from .found import find_sensors
from .record import Recorded, Recorder
from .sampler import Lost, Sampler, Slowed
from .snapshot import UNITS, Channel, Missing, Sensor, SensorLost, Snapshot

__all__ = [
    "UNITS",
    "Channel",
    "Lost",
    "Missing",
    "Recorded",
    "Recorder",
    "Sampler",
    "Sensor",
    "SensorLost",
    "Slowed",
    "Snapshot",
    "find_sensors",
]
