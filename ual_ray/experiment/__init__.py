"""Experiments on made-up data whose truth is known: does the instrument find an effect where there is one, and only there?

truth.py        contexts, their exact answer distributions, uncertainty and its corruption, distance from the truth; pure
training.py     one training through the real token store, loss, loop and export, in this process without Ray
known_truth.py  the arms, seeds and corruptions of `ual experiment known_truth`; finished trainings are not repeated
findings.py     the tables and the comparisons over seeds; pure
"""
