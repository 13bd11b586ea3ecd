"""What the machine draws, from the meters that it has.

Sources: the kernel's hwmon/ina3221 documentation (`inN_label`, `inN_input` in mV, `currN_input` in mA for
three channels; what follows are shunt voltages and sums) and hwmon/ina238 (`power1_input` in microwatts; the
whole input of a Thor); before Jetson Linux 34 the driver ina3221x showed `rail_name_N` and `in_powerN_input`
in mW. RAPL counts microjoules since the start (kernel: power/powercap), for root only since 2020. NVIDIA's
developer guide: an AGX Orin module draws VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0, an Orin NX or Nano VDD_IN.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edge_infer.machine.graphics import number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_infer.machine.tree import Tree

_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that everything else hangs on, the widest first."""

_PARTS = (
    *("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    *("VDD_GPU", "VDD_CPU_SOC_MSS"),  # Thor, with VIN_SYS_5V0
)
"""Rails that lie side by side, and together are the module where there is no input rail."""


@dataclass(frozen=True, slots=True)
class Power:
    """One reading, watts."""

    rails: Mapping[str, float]
    """By the board's own names, unknown ones as well; some lie behind others, so they do not add up."""

    @property
    def total(self) -> tuple[float, str] | None:
        """Watts of the most that is measured, and what that is; None where nothing is.

        The module or board where its input is measured; else the parts that are: GPU board and CPU package.
        """
        rails = self.rails
        for name in _INPUTS:
            if name in rails:
                return rails[name], f"all that {name} feeds"
        parts = [name for name in _PARTS if name in rails]
        if not parts:
            parts = [name for name in rails if name.startswith(("GPU ", "CPU package"))]
        if not parts:
            return None
        return sum(rails[name] for name in parts), " + ".join(parts)


@dataclass(frozen=True, slots=True)
class _Sensor:
    """The files of one rail."""

    name: str
    watts: str | None
    """File of the power itself; else volts and amperes are multiplied."""
    scale: float
    """Watts in one unit of that file."""
    millivolts: str = ""
    milliamperes: str = ""

    def read(self, tree: Tree) -> float | None:
        """Watts, or None where the sensor does not answer."""
        if self.watts is not None:
            value = tree.number(self.watts)
            return None if value is None else value * self.scale
        volts, amperes = tree.number(self.millivolts), tree.number(self.milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6


@dataclass(frozen=True, slots=True)
class EnergyCounter:
    """A counter of energy that begins again at `wraps_at`."""

    name: str
    path: str
    wraps_at: int
    """Microjoules."""

    def joules_between(self, before: int, after: int) -> float:
        """Energy between two readings of less than one round apart."""
        return (after - before) % (self.wraps_at + 1) / 1e6


class PowerMeter:
    """Finds the meters once; reading them is cheap, so that it can be done many times a second.

    Files take some 20 microseconds a rail. Only where `asks_driver`, a reading starts nvidia-smi, which takes
    some tens of milliseconds.
    """

    def __init__(self, tree: Tree, *, gpu: bool = False) -> None:
        """Find the meters of a machine; with `gpu` also ask nvidia-smi, which serves cards, not Jetsons."""
        self._tree = tree
        self._sensors = [*_hwmon_sensors(tree), *_ina3221x_sensors(tree)]
        self.counters = _rapl_counters(tree)
        """Energy counters of the CPU package and memory; their readings are in `read_counters`."""
        self.asks_driver = gpu and bool(self._gpu_watts())

    @property
    def absent(self) -> str | None:
        """Why there is nothing to measure with; None where there is."""
        if self._sensors or self.counters or self.asks_driver:
            return None
        if self._tree.exists("sys/class/powercap/intel-rapl:0/energy_uj"):
            return "the CPU's energy counter (RAPL) can be read by root only"
        return "there is no power meter: no INA3221 rails, no RAPL, no nvidia-smi"

    def read(self) -> Power:
        """Read every rail; one that does not answer is left out. Counters are not among them."""
        rails: dict[str, float] = {}
        for sensor in self._sensors:
            watts = sensor.read(self._tree)
            if watts is not None:
                rails[sensor.name] = watts
        if self.asks_driver:
            rails |= self._gpu_watts()
        return Power(rails)

    def read_counters(self) -> dict[str, int]:
        """Microjoules of each energy counter, by name; compare two by `EnergyCounter.joules_between`."""
        values = {counter.name: self._tree.number(counter.path) for counter in self.counters}
        return {name: value for name, value in values.items() if value is not None}

    def _gpu_watts(self) -> dict[str, float]:
        query = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits")
        values = map(number, (self._tree.run(query) or "").splitlines())
        return {f"GPU {index} board": watts for index, watts in enumerate(values) if watts is not None}


def _hwmon_sensors(tree: Tree) -> list[_Sensor]:
    sensors = []
    for path in tree.folders("sys/class/hwmon/hwmon*"):
        chip = tree.text(f"{path}/name")
        if chip == "ina3221":
            for channel in (1, 2, 3):
                label = tree.text(f"{path}/in{channel}_label")
                files = f"{path}/in{channel}_input", f"{path}/curr{channel}_input"
                if label and label != "NC" and all(map(tree.exists, files)):
                    sensors.append(_Sensor(label, None, 0, *files))
        elif chip == "ina238" and tree.exists(f"{path}/power1_input"):
            # The only one on a Thor, where it measures what the board draws; it bears no label.
            sensors.append(_Sensor(tree.text(f"{path}/label") or "VIN", f"{path}/power1_input", 1e-6))
    return sensors


def _ina3221x_sensors(tree: Tree) -> list[_Sensor]:
    sensors = []
    for path in tree.folders("sys/bus/i2c/drivers/ina3221x/*/iio:device*"):
        for channel in (0, 1, 2):
            label, file = tree.text(f"{path}/rail_name_{channel}"), f"{path}/in_power{channel}_input"
            if label and tree.exists(file):
                sensors.append(_Sensor(label, file, 1e-3))
    return sensors


def _rapl_counters(tree: Tree) -> tuple[EnergyCounter, ...]:
    """Find those of packages and their memory; the cores are part of the package."""
    counters = []
    for path in tree.folders("sys/class/powercap/intel-rapl:*"):
        zone, file = tree.text(f"{path}/name") or "", f"{path}/energy_uj"
        wraps_at = tree.number(f"{path}/max_energy_range_uj")
        if wraps_at is None or tree.number(file) is None:
            continue
        if zone.startswith("package"):
            counters.append(EnergyCounter(f"CPU {zone}", file, wraps_at))
        elif zone == "dram":
            package = PurePosixPath(path).name.split(":")[1]
            counters.append(EnergyCounter(f"memory of package-{package}", file, wraps_at))
    return tuple(counters)
