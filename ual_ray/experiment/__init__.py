"""Experiments: the arms of a configuration over seeds, and made-up data whose truth is known.

arms.py         `ual experiment CONFIG`: arms x seeds x scenarios over one elicitation
checks.py       what keeps it from an answer, before it starts
scenarios.py    the rows of a scenario
tuning.py       the learning rate of every arm
trainings.py    arms x seeds, as many trainings side by side as there is room for
forecast.py     `--dry-run`, and the pilot that measures how much seeds differ

`ual experiment known_truth`: does the instrument find an effect where there is one, and only there?

truth.py        contexts, their exact answer distributions, uncertainty and its corruption, distance from the truth; pure
training.py     one training through the real token store, loss, loop and export, in this process without Ray
known_truth.py  the arms, seeds and corruptions of `ual experiment known_truth`; finished trainings are not repeated
findings.py     the tables and the comparisons over seeds; pure
"""
