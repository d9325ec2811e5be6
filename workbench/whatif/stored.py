"""The calibrations that are kept with the package, and those in files."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import SettingError
from workbench.whatif.calibration import Calibration

FOLDER = Path(__file__).parent / "calibrations"


def stored_calibrations() -> list[str]:
    """Return the names of the calibrations in the package, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load_calibration(name_or_path: str | Path) -> Calibration:
    """Return a stored calibration by its name, or that of a file by its path.

    A text without a folder and without the ending `.json` is a name.

    Raises:
        SettingError: There is no such calibration, or the file is not a calibration.
    """
    path = Path(name_or_path)
    if path.suffix == ".json" or path.parent != Path():
        return Calibration.load(path)
    names = stored_calibrations()
    if str(name_or_path) not in names:
        raise SettingError(
            f"calibration must be the path of a JSON file or one of {', '.join(names) or 'none'}, "
            f"got {str(name_or_path)!r}"
        )
    return Calibration.load(FOLDER / f"{name_or_path}.json")
