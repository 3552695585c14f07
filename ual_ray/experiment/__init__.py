"""Experiments: the arms of a configuration over seeds, and made-up data whose truth is known.

arms.py         `ual experiment CONFIG`: arms x seeds x scenarios over one elicitation
scenarios.py    the rows of a scenario
tuning.py       arms x seeds, as many trainings side by side as there is room for; the learning rate of every arm
forecast.py     what keeps it from an answer, before it starts; `--dry-run`, and the pilot that measures how much seeds differ

`ual experiment known_truth`: does the instrument find an effect where there is one, and only there?

truth.py        contexts, their exact answer distributions, uncertainty and its corruption, distance from the truth; pure
known_truth.py  arms, seeds and corruptions, each training in this process without Ray; finished ones are not repeated
findings.py     the tables and the comparisons over seeds; pure
"""
