"""What one process serves with, shared by all routes as `app.state.serving`."""

from dataclasses import dataclass

from starlette.requests import Request

from bento import metrics
from bento.admission import Admission
from bento.batcher import Batcher
from bento.engine import Engine
from bento.settings import Settings, find_model
from bento.uploads import Answer, Upload, classify_uploads


@dataclass(frozen=True, slots=True)
class Serving:
    """What the routes share.

    Attributes:
        settings: as the process was started with.
        engine: the model that answers.
        admission: room for the bodies of requests.
        batcher: works on the tiles of all requests together.
    """

    settings: Settings
    engine: Engine
    admission: Admission
    batcher: Batcher[Upload, Answer]

    @classmethod
    def start(cls, settings: Settings) -> "Serving":
        """Load the model and start the batcher; raises ModelFileError as `Engine` does."""
        engine = Engine(find_model(settings.model), settings.network_threads)

        def work(uploads: list[Upload]) -> list[Answer]:
            return classify_uploads(engine, uploads)

        def observe(tiles: int, waiting: int) -> None:
            metrics.BATCH.observe(tiles)
            metrics.WAITING.set(waiting)

        admission = Admission(settings.room, settings.most_waiting, settings.most_seconds)
        return cls(settings, engine, admission, Batcher(work, settings.most_in_batch, observe))

    @property
    def best_coverage(self) -> float:
        """The highest coverage that the model's prediction sets are calibrated for; 0: it has none."""
        sets = self.engine.metadata.prediction_sets
        return max(sets.thresholds) if sets else 0.0

    def close(self) -> None:
        """End the batcher's thread."""
        self.batcher.close()


def serving_of(request: Request) -> Serving:
    """Return what the process that got `request` serves with."""
    serving: Serving = request.app.state.serving
    return serving
