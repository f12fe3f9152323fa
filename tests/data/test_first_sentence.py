import pytest

from janus_jax.data.first_sentence import first_sentence


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        (" A red bus stops. It waits. ", "A red bus stops."),
        ("Mr. Smith rides a bus. It is red.", "Mr. Smith rides a bus."),
        (
            "A bus with Dr. Smith and J. R. R. Tolkien waits! Nobody gets on.",
            "A bus with Dr. Smith and J. R. R. Tolkien waits!",
        ),
        ("A flag of the U.S. Army flies. It is old.", "A flag of the U.S. Army flies."),
        ("It weighs approx. 5 kg, i.e. little. So it floats.", "It weighs approx. 5 kg, i.e. little."),
        ('A bus at v1.5 speed? "Yes."', "A bus at v1.5 speed?"),
        ('He said "stop the bus." Then he left.', 'He said "stop the bus."'),
        ("A bus. Red. It waits here. And waits.", "A bus. Red."),
        ("Wait... what is that? Nobody knows.", "Wait... what is that?"),
        ("no end of a sentence", "no end of a sentence"),
        ("www.example.org sells a bus", "www.example.org sells a bus"),
        ("一只猫。它在睡觉。", "一只猫。"),
        ("他说：“停。”然后走了。", "他说：“停。”"),
        ("Un bus rouge attend. Émile le prend.", "Un bus rouge attend."),
        ("", ""),
    ],
)
def test_first_sentence(caption, sentence):
    assert first_sentence(caption) == sentence
