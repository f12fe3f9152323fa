"""One worker of an evaluation with a model that needs no weights.

python -m tests.helpers.evaluation_worker FILE FOLDER NUMBER COUNT SECONDS_PER_BATCH LOG [FAILS_AT_BATCH]
"""

import sys

from etils import epath

from janus_jax.evaluation.plan import make_plan
from janus_jax.evaluation.runner import StopSignal, Worker, run
from tests.helpers.yes_no_benchmark import StubModel, open_yes_no

if __name__ == "__main__":
    file, folder, number, count, seconds, log, *fails_at = sys.argv[1:]
    benchmark = open_yes_no(file)
    model = StubModel(float(seconds), log, int(fails_at[0]) if fails_at else None)
    with StopSignal() as stop:
        done = run(
            benchmark,
            make_plan(benchmark.requests, rows=4),
            epath.Path(folder),
            model,
            Worker(int(number), int(count)),
            stop=lambda: stop.requested,
        )
    sys.exit(0 if done else 75)
