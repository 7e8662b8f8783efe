"""The official MovieLens data sets: where each lies, how to know it arrived whole, and on which terms."""

from dataclasses import dataclass
from typing import Final

from recsys.data.layouts import ML_1M, ML_100K, ML_LATEST
from recsys.errors import ConfigError

_BASE_URL: Final = "https://files.grouplens.org/datasets/movielens"

CITATION: Final = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems (TiiS) 5, 4, Article 19. https://doi.org/10.1145/2827872"
)


@dataclass(frozen=True)
class Dataset:
    """One archive that GroupLens publishes.

    md5           of the archive; None where the content changes: then `<url>.md5` is read at download time
    layout        which format its files have, one of the names in `layouts`
    size_mb       of the archive, roughly, for the message before a download
    may_be_passed_on   whether its terms let a user redistribute it (under the same terms)
    """

    name: str
    url: str
    md5: str | None
    layout: str
    size_mb: int
    may_be_passed_on: bool

    @property
    def terms(self) -> str:
        """What a person must know before using the data, in short; the README in the archive is what holds."""
        pass_on = (
            "pass it on under these same terms only"
            if self.may_be_passed_on
            else "do not pass it on without separate permission"
        )
        return (
            f"{self.name} is a MovieLens data set of GroupLens Research, University of Minnesota. "
            "It may be used for research: do not state or imply their endorsement; name the data set in publications; "
            f"{pass_on}; no commercial use without permission from a GroupLens faculty member; no warranty. "
            "The README in the archive holds the full terms. Please cite: " + CITATION
        )


def _official(name: str, md5: str | None, layout: str, size_mb: int, may_be_passed_on: bool = False) -> Dataset:
    return Dataset(name, f"{_BASE_URL}/{name}.zip", md5, layout, size_mb, may_be_passed_on)


# GroupLens calls ml-latest and ml-latest-small "may change over time", so neither has a checksum to write down here.
DATASETS: Final[dict[str, Dataset]] = {
    dataset.name: dataset
    for dataset in (
        _official("ml-100k", "0e33842e24a9c977be4e0107933c0723", ML_100K, 5),
        _official("ml-1m", "c4d9eecfca2ab87c1945afe126590906", ML_1M, 6),
        _official("ml-10m", "ce571fd55effeba0271552578f2648bd", ML_1M, 66),
        _official("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3", ML_LATEST, 199),
        _official("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada", ML_LATEST, 262, may_be_passed_on=True),
        _official("ml-32m", "d472be332d4daa821edc399621853b57", ML_LATEST, 239, may_be_passed_on=True),
        _official("ml-latest-small", None, ML_LATEST, 1, may_be_passed_on=True),
        _official("ml-latest", None, ML_LATEST, 335, may_be_passed_on=True),
    )
}


def dataset_called(name: str) -> Dataset:
    """The official data set of this name; ConfigError, with the names there are, when there is none."""
    if name not in DATASETS:
        raise ConfigError(f"No official data set is called {name!r}. There are: {', '.join(DATASETS)}.")
    return DATASETS[name]
