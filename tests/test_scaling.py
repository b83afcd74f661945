"""The simulation of many GPUs: its check runs the evaluator's own queue, and more workers are never slower."""

import scaling
from ray import cloudpickle


def test_the_evaluators_queue_takes_cells_that_sleep(ray_session: None) -> None:
    cloudpickle.register_pickle_by_value(scaling)  # Ray's workers have no benchmarks on their path
    try:
        assert scaling.queue([0.02, 0.01, 0.02], 1) >= 0.05
    finally:
        cloudpickle.unregister_pickle_by_value(scaling)


def test_workers_share_the_work_and_each_pays_its_start() -> None:
    costs = scaling.Overheads(actor=1.0, cell=0.0, model=0.0, node=0.0)
    work = [scaling.Work(0, seconds) for seconds in (4.0, 3.0, 2.0, 1.0)]
    walls = [scaling.evaluate(work, workers, costs, lambda worker: 0.0).wall for workers in (1, 2, 4, 8)]
    assert walls == [11.0, 6.0, 5.0, 5.0]
