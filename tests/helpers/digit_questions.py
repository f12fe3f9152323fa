"""A question that the quickstart's model never saw with an image: is the digit even or odd?"""

import numpy as np

from examples.digits import data as digits
from janus_jax.data.formats.memory import Memory
from janus_jax.data.preparation.job import make_job
from janus_jax.data.preparation.record import RecordSettings
from janus_jax.data.preparation.writer import prepare
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record

QUESTION = "Is this digit even or odd?"
ANSWERS = ("even", "odd")  # by the digit modulo 2
COPIES = 4


def write_questions(folder, training):
    """Files with the question about each training digit, also jittered; returns the pattern of their names."""
    rng = np.random.default_rng(0)
    records = []
    for i, (intensities, label) in enumerate(zip(training.intensities, training.labels, strict=True)):
        messages = (Message("user", f"{IMAGE_MARKER}\n{QUESTION}"), Message("assistant", ANSWERS[label % 2]))
        for copy in range(1 + COPIES):
            image = digits.to_image(intensities)
            shown = digits.encode(digits.jitter(image, rng) if copy else image)
            records.append(Record(task="understand", messages=messages, images=(shown,), key=f"parity/{i}/{copy}"))
    dataset = Memory(name="parity", records=tuple(records))
    prepare(make_job(dataset, folder, RecordSettings(), num_output_files=1))
    return f"{folder}/understand-*.array_record"


def answer_accuracy(model, held_out):
    """Share of held-out digits about which the model answers exactly as expected."""
    images = [[digits.to_image(intensities)] for intensities in held_out.intensities]
    answers = model.chat(images, [QUESTION] * len(images), max_new_tokens=4)
    return float(
        np.mean([answer == ANSWERS[label % 2] for answer, label in zip(answers, held_out.labels, strict=True)])
    )
