"""The official MovieLens data sets: where each lies, how to know it arrived whole, and on which terms."""

from dataclasses import dataclass
from typing import Final

from recsys.errors import ConfigError

CITATION: Final = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems (TiiS) 5, 4, Article 19. https://doi.org/10.1145/2827872"
)


@dataclass(frozen=True)
class Dataset:
    """One archive that GroupLens publishes.

    md5           of the archive; None where the content changes: then `<url>.md5` is read at download time
    size_mb       of the archive, roughly, for the message before a download
    may_be_passed_on   whether its terms let a user redistribute it (under the same terms)
    """

    name: str
    md5: str | None
    size_mb: int
    may_be_passed_on: bool = False
    host: str = "https://files.grouplens.org/datasets/movielens"

    @property
    def url(self) -> str:
        return f"{self.host}/{self.name}.zip"

    @property
    def terms(self) -> str:
        """In short; the README in the archive is what holds."""
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


# GroupLens calls ml-latest and ml-latest-small "may change over time", so neither has a checksum to write down here.
DATASETS: Final[dict[str, Dataset]] = {
    dataset.name: dataset
    for dataset in (
        Dataset("ml-100k", "0e33842e24a9c977be4e0107933c0723", 5),
        Dataset("ml-1m", "c4d9eecfca2ab87c1945afe126590906", 6),
        Dataset("ml-10m", "ce571fd55effeba0271552578f2648bd", 66),
        Dataset("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3", 199),
        Dataset("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada", 262, may_be_passed_on=True),
        Dataset("ml-32m", "d472be332d4daa821edc399621853b57", 239, may_be_passed_on=True),
        Dataset("ml-latest-small", None, 1, may_be_passed_on=True),
        Dataset("ml-latest", None, 335, may_be_passed_on=True),
    )
}


def dataset_called(name: str) -> Dataset:
    """The official data set of this name; ConfigError, with the names there are, when there is none."""
    if name not in DATASETS:
        raise ConfigError(f"No official data set is called {name!r}. There are: {', '.join(DATASETS)}.")
    return DATASETS[name]
