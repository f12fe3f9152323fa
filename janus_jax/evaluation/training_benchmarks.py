"""Benchmarks while training: figures of the first questions of some benchmarks, every `benchmarks.every_steps` steps.

The questions are answered greedily on the mesh of the run, from its own arrays. They are few and no whole benchmark, so
the figures show where a run goes, and are comparable only with each other.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from janus_jax.errors import UserError
from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Answer
from janus_jax.evaluation.model_answers import Decoding, ModelAnswers, RequestMaker, published_generation
from janus_jax.evaluation.plan import Plan, make_plan
from janus_jax.evaluation.question_benchmark import QuestionBenchmark
from janus_jax.evaluation.records import AnswerRecord
from janus_jax.evaluation.training_samples import engine_of_run, little_memory_ends_no_run
from janus_jax.inference.pipeline import Pipeline
from janus_jax.models.config import FamilyConfig
from janus_jax.training.actions import Action, MeasureFactory, Moment, every
from janus_jax.training.metrics_log import MetricsLog
from janus_jax.training.start import Run


def benchmark_measures(config: ConfigDict) -> Sequence[MeasureFactory]:
    """The factories for `training.loop.train`: none when `benchmarks.every_steps` is 0, so that a run pays nothing."""
    return [make_benchmark_measure] if config.benchmarks.every_steps else []


def make_benchmark_measure(run: Run, log: MetricsLog) -> Action:
    """Raises UserError for an image tokenizer, unknown or unscored benchmarks, missing files, or a short context."""
    fields, config = run.config.benchmarks, run.plan.architecture
    if not isinstance(config, FamilyConfig) or run.tokenizer is None:
        raise UserError(f"benchmarks.every_steps={fields.every_steps}: an image tokenizer answers no questions")
    if not fields.names or not fields.data:
        raise UserError(
            f"benchmarks.names={tuple(fields.names)}, benchmarks.data={fields.data!r}: expected names and a folder"
        )
    benchmarks = [benchmark.first(fields.limit) for benchmark in registry.load(fields.data, list(fields.names))]
    for benchmark in benchmarks:
        RequestMaker(config, run.tokenizer, _decoding(config, benchmark))
        empty = benchmark.score([Answer(question.index, "") for question in benchmark.requests])
        if not empty.headline:
            raise UserError(f"benchmarks.names: {benchmark.name} cannot be scored here: {'; '.join(empty.notes)}")
    return MeasureBenchmarks(run, log, benchmarks)


def _decoding(config: FamilyConfig, benchmark: QuestionBenchmark) -> Decoding:
    return Decoding(published_generation(config), benchmark.max_new_tokens, benchmark.system_prompt)


class MeasureBenchmarks:
    """Lets the model of a run answer questions, and reports `eval/<benchmark>_<figure>` of the headline of each.

    A run that keeps a moving average of its parameters answers with the average. All processes of a run answer the same
    batches at the same time, since the parameters are divided over their devices.
    """

    def __init__(self, run: Run, log: MetricsLog, benchmarks: Sequence[QuestionBenchmark]):
        self._every_steps, self._log = run.config.benchmarks.every_steps, log
        self._engine = engine_of_run(run)
        self._parts = [
            (benchmark, make_plan(benchmark.requests, run.config.benchmarks.rows)) for benchmark in benchmarks
        ]

    def is_due(self, moment: Moment) -> bool:
        return every(self._every_steps, moment)

    def __call__(self, moment: Moment) -> None:
        engine = self._engine.with_params(moment.params(ema=moment.state.ema is not None))
        with little_memory_ends_no_run("benchmarks", moment.step):
            for benchmark, plan in self._parts:
                model = ModelAnswers(Pipeline(engine), _decoding(engine.config, benchmark))
                self._measure(benchmark, plan, model, moment)

    def close(self) -> None:
        pass

    def _measure(self, benchmark: QuestionBenchmark, plan: Plan, model: ModelAnswers, moment: Moment) -> None:
        records: dict[int, AnswerRecord] = {}
        for batch in plan.batches:
            answers = model.answer([benchmark.requests[group[0]] for group in batch.groups])
            for group, record in zip(batch.groups, answers, strict=True):
                records |= {position: record._replace(index=benchmark.requests[position].index) for position in group}
            moment.keep_alive()
            if moment.stop_requested():
                self._log.say(f"{benchmark.name} after step {moment.step}: stopped by a signal, without a result")
                return
        scores = benchmark.score([records[position].to_answer() for position in range(len(benchmark.requests))])
        metric, unanswered = scores.metrics[scores.headline], sum(bool(record.error) for record in records.values())
        name = f"eval/{benchmark.name}_{scores.headline}"
        self._log.report({name: metric.value, f"eval/{benchmark.name}_unanswered": float(unanswered)})
        self._log.say(f"{name} after step {moment.step}: {metric.value:.2f} of {metric.count} questions")
