"""A study that several searches open at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from tilewise.training.tuning.space import Choices, TuneSettings
from tilewise.training.tuning.study import StudyPlan, open_study

SEARCHES = 6


def test_searches_that_begin_at_the_same_moment_share_one_study(tmp_path: Path) -> None:
    settings = TuneSettings(space={"data.batch_size": Choices(choices=(12, 24))})
    for turn in range(4):
        folder = tmp_path / str(turn)
        plan = StudyPlan("tune", f"sqlite:///{folder}/study.db", folder, 1, settings, ())
        together = Barrier(SEARCHES)

        def begin(plan: StudyPlan = plan, together: Barrier = together) -> int:
            together.wait(timeout=60)
            return open_study(plan)._study_id

        with ThreadPoolExecutor(SEARCHES) as pool:
            found = [pool.submit(begin) for _ in range(SEARCHES)]
            assert len({each.result(timeout=120) for each in found}) == 1
